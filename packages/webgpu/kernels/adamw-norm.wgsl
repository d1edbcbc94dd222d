// The norm of all gradients from the sum of squares of each; one that was not finite before stays.

@compute @workgroup_size(1)
fn main() {
  if (!isFinite(gradientNorm[0])) { return; }
  var sum = 0.0;
  for (var i = 0u; i < p.parameters; i++) { sum += squares[i]; }
  if (isFinite(sum)) { sum = sqrt(sum); }
  gradientNorm[0] = sum;
}
