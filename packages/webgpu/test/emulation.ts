/*
 * Kernels of the tiers that no CPU device has, rewritten for one: their logic can then be tried, though not what a GPU makes of it.
 */

const MATRIX = `
struct Matrix { e: array<f32, 256> }
fn subgroupMatrixMultiplyAccumulate(a: Matrix, b: Matrix, c: Matrix) -> Matrix {
  var result = c;
  for (var i = 0u; i < 16u; i++) {
    for (var j = 0u; j < 16u; j++) {
      for (var l = 0u; l < 16u; l++) { result.e[16u * i + j] += a.e[16u * i + l] * b.e[16u * l + j]; }
    }
  }
  return result;
}`;

/** Loads and stores of an array of workgroup memory: every thread has the whole matrix. */
const access = (name: string): string =>
  ["row", "col"]
    .map(
      (major) => `
fn load_${name}_${major}(offset: u32, pitch: u32) -> Matrix {
  var result: Matrix;
  for (var i = 0u; i < 256u; i++) { result.e[i] = ${name}[offset + ${major === "row" ? "i / 16u * pitch + i % 16u" : "i % 16u * pitch + i / 16u"}]; }
  return result;
}`,
    )
    .join("") +
  `
fn store_${name}(offset: u32, m: Matrix, pitch: u32) {
  for (var i = 0u; i < 256u; i++) { ${name}[offset + i / 16u * pitch + i % 16u] = m.e[i]; }
}`;

/** A kernel without matrix types and without f16: buffers of f16 are unpacked by built-in functions. */
export function emulate(code: string): string {
  const plain = code
    .replace(/enable (chromium_experimental_subgroup_matrix|f16);/g, "")
    .replace(/diagnostic\(off, chromium[^;]*;/g, "")
    .replace(/(var<storage, read> \w+: )array<vec4<f16>>/g, "$1array<vec2<u32>>")
    .replace(/(var<storage, read> \w+: )array<f16>/g, "$1array<u32>")
    .replace(/vec4<f32>\((\w+)\[at\]\)/g, "vec4<f32>(unpack2x16float($1[at].x), unpack2x16float($1[at].y))")
    .replace(/return f32\((\w+)\[at\]\)/g, "return unpack2x16float($1[at >> 1u])[at & 1u]");
  if (!code.includes("subgroupMatrixLoad")) return plain;
  const rewritten = plain
    .replace(/\bf16\b/g, "f32")
    .replace(/subgroup_matrix_result<f32, SIDE, SIDE>\(\)/g, "Matrix()")
    .replace(
      /subgroupMatrixLoad<subgroup_matrix_\w+<f32, SIDE, SIDE>, (row|col)_major>\(&(\w+), /g,
      "load_$2_$1(",
    )
    .replace(/subgroupMatrixStore<row_major>\(&(\w+), /g, "store_$1(");
  return rewritten + MATRIX + ["queries", "others", "weights", "scores"].map(access).join("");
}
