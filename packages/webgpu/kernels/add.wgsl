// out = a + b.
fn compute(i: u32) { out_set(i, a_quad(i) + b_quad(i)); }
