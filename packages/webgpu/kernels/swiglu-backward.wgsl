// dGate = dOut ⊙ up ⊙ SiLU'(gate), dUp = dOut ⊙ SiLU(gate).
fn compute(i: u32) {
  let gate = gate_quad(i);
  let s = sigmoid(gate);
  let gradient = dOut_quad(i);
  dGate_set(i, gradient * up_quad(i) * s * (1.0 + gate * (1.0 - s)));
  dUp_set(i, gradient * gate * s);
}
