// A slot is its groups of four and one group more, whose second element is 0 if the slot is unused.
fn markUnused(row: u32, slot: u32) { slots[(row * p.places + slot) * (DQ + 1u) + DQ] = vec4<f32>(); }
