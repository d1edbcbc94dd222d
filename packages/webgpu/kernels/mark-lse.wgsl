// Log-sum-exps of slots lie apart from them; UNUSED are the bits of a number below every one of them.
fn markUnused(row: u32, slot: u32) { slotLse[row * SLOTS + slot] = bitcast<f32>(UNUSED); }
