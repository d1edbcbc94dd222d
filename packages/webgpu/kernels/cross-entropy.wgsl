// loss_t = lse_t − logits_{t, y_t}: one workgroup a token.

const LOG2_E = 1.4426950408889634;
const LN_2 = 0.6931471805599453;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let row = group_index(group);
  if (row >= p.groups) { return; }
  let begin = row * p.columns;
  var most = -3.0e38;
  for (var v = thread; v < p.columns; v += ROW_THREADS) { most = max(most, logits_at(begin + v)); }
  let maximum = rowMaximum(thread, most);
  var sum = 0.0;
  for (var v = thread; v < p.columns; v += ROW_THREADS) { sum += exp2Of((logits_at(begin + v) - maximum) * LOG2_E); }
  let total = maximum + log2Of(rowTotal(thread, sum)) * LN_2;
  if (thread != 0u) { return; }
  lse[row] = total;
  let wanted = u32(targets[row]);
  var value = 0.0;
  if (wanted < p.columns) { value = total - logits_at(begin + wanted); }
  loss[row] = value;
}
