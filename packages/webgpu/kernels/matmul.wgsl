// out = A · B in tiles of 64 × 64, 4 × 4 a thread, 16 of the inner extent at a time in workgroup memory.

const SIDE = 64u;
const DEPTH = 16u;
const PITCH = SIDE / 4u + 1u; // groups of four in a row of a tile, one more against bank conflicts

var<workgroup> tileA: array<vec4<f32>, DEPTH * PITCH>;
var<workgroup> tileB: array<vec4<f32>, DEPTH * PITCH>;

fn a_element(row: u32, k: u32) -> f32 {
  if (row >= p.endRow || k >= p.endInner) { return 0.0; }
  if (TRANSPOSE_A) { return a_at(k * p.rows + row); }
  return a_at(row * p.inner + k);
}

fn b_element(k: u32, column: u32) -> f32 {
  if (column >= p.endColumn || k >= p.endInner) { return 0.0; }
  if (TRANSPOSE_B) { return b_at(column * p.inner + k); }
  return b_at(k * p.columns + column);
}

fn a_four(row: u32, k: u32) -> vec4<f32> {
  return vec4<f32>(a_element(row, k), a_element(row + 1u, k), a_element(row + 2u, k), a_element(row + 3u, k));
}

fn b_four(k: u32, column: u32) -> vec4<f32> {
  return vec4<f32>(
    b_element(k, column), b_element(k, column + 1u), b_element(k, column + 2u), b_element(k, column + 3u),
  );
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let index = group_index(group);
  if (index >= p.groups) { return; }
  let across = (p.endColumn - p.firstColumn + SIDE - 1u) / SIDE;
  let row = p.firstRow + index / across * SIDE;
  let column = p.firstColumn + index % across * SIDE;
  let tx = thread % 16u;
  let ty = thread / 16u;
  // Neighbouring threads read neighbouring elements: along k where that is the inner extent of the factor's rows.
  let ka = select(thread % 16u, thread / 16u, TRANSPOSE_A);
  let fourA = select(thread / 16u, thread % 16u, TRANSPOSE_A);
  let kb = select(thread / 16u, thread % 16u, TRANSPOSE_B);
  let fourB = select(thread % 16u, thread / 16u, TRANSPOSE_B);
  var sums: array<vec4<f32>, 4>;
  for (var k = p.firstInner; k < p.endInner; k += DEPTH) {
    workgroupBarrier();
    tileA[ka * PITCH + fourA] = a_four(row + 4u * fourA, k + ka);
    tileB[kb * PITCH + fourB] = b_four(k + kb, column + 4u * fourB);
    workgroupBarrier();
    for (var step = 0u; step < DEPTH; step++) {
      let a = tileA[step * PITCH + ty];
      let b = tileB[step * PITCH + tx];
      sums[0] = fma(vec4<f32>(a.x), b, sums[0]);
      sums[1] = fma(vec4<f32>(a.y), b, sums[1]);
      sums[2] = fma(vec4<f32>(a.z), b, sums[2]);
      sums[3] = fma(vec4<f32>(a.w), b, sums[3]);
    }
  }
  for (var i = 0u; i < 4u; i++) {
    let r = row + 4u * ty + i;
    for (var j = 0u; j < 4u; j++) {
      let c = column + 4u * tx + j;
      if (r >= p.endRow || c >= p.endColumn) { continue; }
      let at = r * p.columns + c - p.out_from;
      if (p.firstInner > 0u) { out[at] += sums[i][j]; } else { out[at] = sums[i][j]; }
    }
  }
}
