// dTable_v = Σ_{t: indices_t = v} dOut_t, in order of t: one workgroup for 64 channels of a row, which skips stretches of tokens
// without its row.

var<workgroup> nearby: array<u32, 64>;
var<workgroup> found: atomic<u32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let index = group_index(group);
  if (index >= p.groups) { return; }
  let slices = (p.channels + 63u) / 64u;
  let row = p.firstRow + index / slices;
  let c = (index % slices) * 64u + thread;
  let at = row * p.channels + c - p.dTable_from;
  var sum = 0.0;
  if (p.accumulate != 0u && c < p.channels) { sum = dTable[at]; }
  for (var first = p.firstToken; first < p.endToken; first += 64u) {
    if (thread == 0u) { atomicStore(&found, 0u); }
    workgroupBarrier();
    var token = 0xffffffffu;
    if (first + thread < p.endToken) { token = u32(indices[first + thread - p.indices_from]); }
    nearby[thread] = token;
    if (token == row) { atomicAdd(&found, 1u); }
    workgroupBarrier();
    let any = atomicLoad(&found) > 0u;
    if (any && c < p.channels) {
      for (var j = 0u; j < 64u; j++) {
        if (nearby[j] == row) { sum += dOut_at((first + j) * p.channels + c); }
      }
    }
    workgroupBarrier();
  }
  if (c < p.channels) { dTable[at] = sum; }
}
