// A copy of the workspace as it is published: the built packages, with the CUDA addon and kernels in a package of their own.
import { execFileSync } from "node:child_process";
import {
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { basename, dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

export const root = fileURLToPath(new URL("../..", import.meta.url));

export const readJson = (file) => JSON.parse(readFileSync(file, "utf8"));
export const writeJson = (file, value) => writeFileSync(file, `${JSON.stringify(value, null, 2)}\n`);

/** The packages under `workspace`, what each depends on before it: `{ name, version, dir, manifest }`. */
export function publicPackages(workspace = root) {
  const packages = ["packages", "apps"]
    .flatMap((group) => readdirSync(join(workspace, group)).map((name) => join(workspace, group, name)))
    .filter((dir) => existsSync(join(dir, "package.json")))
    .map((dir) => ({ dir, manifest: readJson(join(dir, "package.json")) }))
    .filter(({ manifest }) => !manifest.private)
    .map(({ dir, manifest }) => ({ name: manifest.name, version: manifest.version, dir, manifest }));
  const sorted = new Set();
  const add = (found) => {
    for (const other of packages) if (other.name in dependenciesOf(found.manifest)) add(other);
    sorted.add(found);
  };
  for (const found of packages) add(found);
  return [...sorted];
}

const dependenciesOf = ({ dependencies, optionalDependencies }) => ({
  ...dependencies,
  ...optionalDependencies,
});

/** Copies what publishing needs from the workspace into `target`, with links between its packages. */
export function stage(target) {
  for (const name of ["package.json", "pnpm-workspace.yaml", ".changeset"]) {
    cpSync(join(root, name), join(target, name), { recursive: true });
  }
  for (const { dir, manifest } of publicPackages()) {
    if (!existsSync(join(dir, "dist"))) throw new Error(`${manifest.name} is not built: npm run build`);
    const copy = join(target, basename(dirname(dir)), basename(dir));
    const skipped = ["node_modules", "test", "build"].map((name) => join(dir, name));
    cpSync(dir, copy, {
      recursive: true,
      filter: (path) => !skipped.includes(path) && !path.endsWith(join("addon", "build")),
    });
  }
  splitCuda(target);
  linkPackages(target);
}

/**
 * Moves the addon and the kernels out of `@moba-js/cuda` into an optional package for each platform that was built, so that
 * installing compiles and downloads nothing, and other platforms get none of it.
 */
function splitCuda(workspace) {
  const cuda = join(workspace, "packages", "cuda");
  const manifest = readJson(join(cuda, "package.json"));
  const [addons, kernels] = [join(cuda, "dist", "addon"), join(cuda, "dist", "kernels")];
  const platforms = existsSync(addons)
    ? readdirSync(addons).flatMap((name) => name.match(/^(.+)\.node$/)?.[1] ?? [])
    : [];
  const hasKernels = existsSync(kernels) && readdirSync(kernels).some((name) => name.endsWith(".fatbin"));
  for (const platform of hasKernels ? platforms : []) {
    const [os, cpu] = platform.split("-");
    const dir = join(workspace, "packages", `cuda-${platform}`);
    mkdirSync(dir);
    cpSync(join(addons, `${platform}.node`), join(dir, "addon", `${platform}.node`));
    cpSync(kernels, join(dir, "kernels"), {
      recursive: true,
      filter: (path) => !path.endsWith(".hash"),
    });
    cpSync(join(cuda, "LICENSE"), join(dir, "LICENSE"));
    writeFileSync(
      join(dir, "README.md"),
      `# ${manifest.name}-${platform}\n\nThe addon and the compiled kernels of \`${manifest.name}\` for ${platform}. Install that package.\n`,
    );
    writeJson(join(dir, "package.json"), {
      name: `${manifest.name}-${platform}`,
      version: manifest.version,
      description: `The addon and compiled kernels of ${manifest.name} for ${platform}`,
      license: manifest.license,
      type: "module",
      engines: manifest.engines,
      os: [os],
      cpu: [cpu],
      ...(os === "linux" ? { libc: ["glibc"] } : {}),
      exports: { "./package.json": "./package.json" },
      files: ["addon", "kernels", "README.md", "LICENSE"],
    });
    manifest.optionalDependencies = {
      ...manifest.optionalDependencies,
      [`${manifest.name}-${platform}`]: "workspace:*",
    };
  }
  manifest.files.push("!dist/addon", "!dist/kernels");
  writeJson(join(cuda, "package.json"), manifest);
}

/** Links the packages to each other, as an install would (`pnpm pack` reads their versions there), and the tools to all. */
function linkPackages(workspace) {
  symlinkSync(join(root, "node_modules"), join(workspace, "node_modules"));
  const packages = publicPackages(workspace);
  for (const { dir, manifest } of packages) {
    const modules = join(dir, "node_modules");
    for (const other of packages.filter(({ name }) => name in dependenciesOf(manifest))) {
      const link = join(modules, other.name);
      mkdirSync(dirname(link), { recursive: true });
      symlinkSync(other.dir, link);
    }
  }
}

/** Packs every package of a staged workspace: `{ name, version, dir, manifest, tarball }`. */
export function pack(workspace, target) {
  mkdirSync(target, { recursive: true });
  return publicPackages(workspace).map((found) => {
    const tarball = join(target, `${found.name.replace("@", "").replace("/", "-")}-${found.version}.tgz`);
    execFileSync(tool("pnpm"), ["pack", "--out", tarball], { cwd: found.dir, stdio: "pipe" });
    return { ...found, tarball };
  });
}

/** A program of the workspace's dev dependencies. */
export const tool = (name) => join(root, "node_modules", ".bin", name);

/** Moves the versions of a staged workspace as its changesets say. */
export function bump(workspace) {
  execFileSync(tool("changeset"), ["version"], { cwd: workspace, stdio: "pipe" });
}
