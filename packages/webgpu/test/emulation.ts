/**
 * A kernel of the tier `shader-f16`, which no CPU device has, rewritten for one: buffers of f16 are unpacked by built-in functions. Its
 * logic can then be tried, though not what a GPU makes of it.
 */
export const emulate = (code: string): string =>
  code
    .replace(/enable f16;/, "")
    .replace(/(var<storage, read> \w+: )array<vec4<f16>>/g, "$1array<vec2<u32>>")
    .replace(/(var<storage, read> \w+: )array<f16>/g, "$1array<u32>")
    .replace(/vec4<f32>\((\w+)\[at\]\)/g, "vec4<f32>(unpack2x16float($1[at].x), unpack2x16float($1[at].y))")
    .replace(/return f32\((\w+)\[at\]\)/g, "return unpack2x16float($1[at >> 1u])[at & 1u]");
