// out = SiLU(gate) ⊙ up.
fn compute(i: u32) {
  let gate = gate_quad(i);
  out_set(i, gate * sigmoid(gate) * up_quad(i));
}
