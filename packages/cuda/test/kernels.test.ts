import { spawnSync } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";
import { basename, join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, it } from "vitest";

const root = fileURLToPath(new URL("..", import.meta.url));
const sources = readdirSync(join(root, "kernels"), { recursive: true, encoding: "utf8" })
  .filter((file) => file.endsWith(".cu"))
  .map((file) => basename(file, ".cu"));
const nvcc = spawnSync("nvcc", ["--version"]).status === 0;
if (!nvcc) console.log("skipped: kernels compile only where there is nvcc");

const ENTRY = { ptx: 1, elf: 2 };

/** The code that a fatbin holds: `elf 90`, `ptx 80` …; "a" behind the architecture whose code no other runs. */
function contentsOf(fatbin: Buffer): string[] {
  const contents: string[] = [];
  for (let at = 0; at < fatbin.length; ) {
    expect(fatbin.readUInt32LE(at)).toBe(0xba55ed50);
    const end = at + fatbin.readUInt16LE(at + 6) + Number(fatbin.readBigUInt64LE(at + 8));
    for (at += fatbin.readUInt16LE(at + 6); at < end; ) {
      const kind = fatbin.readUInt16LE(at) === ENTRY.ptx ? "ptx" : "elf";
      const specific = fatbin.readUInt32LE(at + 40) & 0x100000 ? "a" : "";
      contents.push(`${kind} ${fatbin.readUInt32LE(at + 28)}${specific}`);
      at += fatbin.readUInt32LE(at + 4) + Number(fatbin.readBigUInt64LE(at + 8));
    }
  }
  return contents.sort();
}

it.runIf(nvcc)("every kernel file is compiled for all its architectures", () => {
  const built = (name: string) => contentsOf(readFileSync(join(root, "dist", "kernels", `${name}.fatbin`)));
  const portable = ["elf 100", "elf 120", "elf 80", "elf 86", "elf 89", "elf 90", "ptx 80"];
  expect(sources.length).toBeGreaterThan(0);
  for (const name of sources) {
    expect({ name, contents: built(name) }).toEqual({
      name,
      contents: name.startsWith("sm90_") ? ["elf 90a"] : portable,
    });
  }
});
