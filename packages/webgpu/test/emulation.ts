/*
 * Kernels of the tiers that no CPU device reaches, rewritten for one: their logic can then be tried, though not what a GPU makes of it.
 */

/** Buffers of f16 are unpacked by built-in functions. */
export const emulateF16 = (code: string): string =>
  code
    .replace(/enable f16;/, "")
    .replace(/(var<storage, read> \w+: )array<vec4<f16>>/g, "$1array<vec2<u32>>")
    .replace(/(var<storage, read> \w+: )array<f16>/g, "$1array<u32>")
    .replace(/vec4<f32>\((\w+)\[at\]\)/g, "vec4<f32>(unpack2x16float($1[at].x), unpack2x16float($1[at].y))")
    .replace(/return f32\((\w+)\[at\]\)/g, "return unpack2x16float($1[at >> 1u])[at & 1u]");

/** What the pretended device says of itself: subgroups of 32 that multiply matrices. */
export const WIDE_ADAPTER_INFO = {
  subgroupMinSize: 32,
  subgroupMaxSize: 32,
  subgroupMatrixConfigs: [{ componentType: "f16", resultComponentType: "f32", M: 16, N: 16, K: 16 }],
};

/** Subgroups of 32 threads and their matrices, on a device of narrower ones. */
export const emulateWide = (code: string, label: string): string => {
  const isExchange = code.includes("subgroupShuffleXor");
  return emulateShuffles(
    emulateMatrices(code),
    !isExchange ? "u32" : label.includes("backward") ? "vec4<f32>" : "f32",
  );
};

/** Shuffles go through workgroup memory. */
const emulateShuffles = (code: string, type: string): string =>
  code.includes("subgroupShuffle")
    ? code
        .replace("enable subgroups;", "")
        .replaceAll("subgroupShuffleXor(", "emulatedExchange(")
        .replaceAll("subgroupShuffle(", "emulatedShuffle(")
        .replace(
          /@compute @workgroup_size\(([^)]*)\)\nfn main\(([\s\S]*?)\) \{/,
          (main, size) => `
var<private> emulatedThread: u32;
var<workgroup> shuffled: array<${type}, ${size}>;
fn shuffledFrom(x: ${type}, thread: u32) -> ${type} {
  workgroupBarrier();
  shuffled[emulatedThread] = x;
  workgroupBarrier();
  return shuffled[thread];
}
fn emulatedExchange(x: ${type}, mask: u32) -> ${type} { return shuffledFrom(x, emulatedThread ^ mask); }
fn emulatedShuffle(x: ${type}, lane: u32) -> ${type} { return shuffledFrom(x, emulatedThread / 32u * 32u + lane); }
${main} emulatedThread = thread;`,
        )
    : code;

/** Of a product, each thread has half a row: the row of the left matrix, and half the columns of the right one. */
const MATRICES = `
alias Left = array<f32, 16>;
alias Right = array<array<f32, 8>, 16>;
alias Sum = array<f32, 8>;
var<private> emulatedLane: u32;
fn halfAt(group: u32, i: u32) -> f32 { return unpack2x16float(memory[group + i / 8u][i % 8u / 2u])[i % 2u]; }
fn loadLeft(at: u32, pitch: u32) -> Left {
  var m: Left;
  for (var k = 0u; k < 16u; k++) { m[k] = halfAt(at + emulatedLane / 2u * pitch, k); }
  return m;
}
fn loadRight(at: u32, pitch: u32) -> Right {
  var m: Right;
  for (var k = 0u; k < 16u; k++) {
    for (var i = 0u; i < 8u; i++) { m[k][i] = halfAt(at + k * pitch, emulatedLane % 2u * 8u + i); }
  }
  return m;
}
fn loadTransposed(at: u32, pitch: u32) -> Right {
  var m: Right;
  for (var k = 0u; k < 16u; k++) {
    for (var i = 0u; i < 8u; i++) { m[k][i] = halfAt(at + (emulatedLane % 2u * 8u + i) * pitch, k); }
  }
  return m;
}
fn multiplyAccumulate(a: Left, b: Right, c: Sum) -> Sum {
  var left = a;
  var right = b;
  var sum = c;
  for (var i = 0u; i < 8u; i++) {
    for (var k = 0u; k < 16u; k++) { sum[i] += left[k] * right[k][i]; }
  }
  return sum;
}
fn scalarMultiply(a: Sum, x: f32) -> Sum {
  var sum = a;
  for (var i = 0u; i < 8u; i++) { sum[i] *= x; }
  return sum;
}
fn storeSum(at: u32, m: Sum, pitch: u32) {
  var sum = m;
  for (var i = 0u; i < 8u; i++) {
    let column = emulatedLane % 2u * 8u + i;
    memory[at + emulatedLane / 2u * pitch + column / 4u][column % 4u] = bitcast<u32>(sum[i]);
  }
}
`;

const emulateMatrices = (code: string): string =>
  code.includes("chromium_experimental_subgroup_matrix")
    ? code
        .replace("enable chromium_experimental_subgroup_matrix;", "")
        .replace(/diagnostic\([^;]*;/, "")
        .replace(/alias (Left|Right|Sum) = [^;]*;/g, "")
        .replaceAll("subgroupMatrixLoad<Left, row_major>(&memory,", "loadLeft(")
        .replaceAll("subgroupMatrixLoad<Right, row_major>(&memory,", "loadRight(")
        .replaceAll("subgroupMatrixLoad<Right, col_major>(&memory,", "loadTransposed(")
        .replaceAll("subgroupMatrixStore<row_major>(&memory,", "storeSum(")
        .replaceAll("subgroupMatrixMultiplyAccumulate", "multiplyAccumulate")
        .replaceAll("subgroupMatrixScalarMultiply", "scalarMultiply")
        .replace(
          /@builtin\(subgroup_id\)[\s\S]*?\) \{/,
          ") { let subgroup = thread / 32u; let lane = thread % 32u; emulatedLane = lane;",
        )
        .concat(MATRICES)
    : code;
