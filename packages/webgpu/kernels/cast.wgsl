// out = x in another dtype. float32 to float32 copies bits.
fn compute(i: u32) { out_set(i, x_quad(i)); }
