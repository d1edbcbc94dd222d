// Copies of the workspace: as it is, and as it is published, with the CUDA addon and kernels in a package of their own.
import { execFileSync, spawnSync } from "node:child_process";
import {
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { dirname, join, relative, sep } from "node:path";
import { fileURLToPath } from "node:url";
import gitHost from "hosted-git-info";

export const root = fileURLToPath(new URL("../..", import.meta.url));

export const readJson = (file) => JSON.parse(readFileSync(file, "utf8"));
export const writeJson = (file, value) => writeFileSync(file, `${JSON.stringify(value, null, 2)}\n`);

/** A program of the workspace's dev dependencies. */
export const tool = (name) => join(root, "node_modules", ".bin", name);

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

/** Copies what a release needs from the workspace `from`, what is built too, into `target`. */
export function copyWorkspace(target, from = root) {
  mkdirSync(target, { recursive: true });
  const tools = join("tools", "release");
  for (const name of ["package.json", "pnpm-workspace.yaml", ".gitignore", ".changeset", "api", tools]) {
    cpSync(join(from, name), join(target, name), { recursive: true });
  }
  for (const { dir, manifest } of publicPackages(from)) {
    if (!existsSync(join(dir, "dist"))) throw new Error(`${manifest.name} is not built: npm run build`);
    const skipped = ["node_modules", "test", "build"].map((name) => join(dir, name));
    cpSync(dir, join(target, relative(from, dir)), {
      recursive: true,
      filter: (path) => !skipped.includes(path) && !path.endsWith(join("addon", "build")),
    });
  }
  symlinkSync(join(root, "node_modules"), join(target, "node_modules"));
  linkPackages(target);
}

/** Copies the workspace `from` into `target` as it is published. */
export function stage(target, from = root) {
  copyWorkspace(target, from);
  const repository = repositoryOf(from);
  for (const { dir, manifest } of repository ? publicPackages(target) : []) {
    const directory = relative(target, dir).replaceAll(sep, "/");
    writeJson(join(dir, "package.json"), { ...manifest, repository: { ...repository, directory } });
  }
  splitCuda(target);
  linkPackages(target);
}

/** The public address of the git repository in `dir`, from its remote `origin`; undefined where that is none. */
export function repositoryOf(dir) {
  const { stdout } = spawnSync("git", ["remote", "get-url", "origin"], { cwd: dir, encoding: "utf8" });
  const host = gitHost.fromUrl(stdout?.trim() ?? ""); // none at all without git
  return host && { type: "git", url: `git+${host.browse()}.git` }; // without the credentials that a remote may have
}

/** The platforms that the addon and the kernels of `@moba-js/cuda` are built for: `linux-x64`. */
export function builtPlatforms(workspace = root) {
  const dist = join(workspace, "packages", "cuda", "dist");
  const filesOf = (name) => (existsSync(join(dist, name)) ? readdirSync(join(dist, name)) : []);
  if (!filesOf("kernels").some((name) => name.endsWith(".fatbin"))) return [];
  return filesOf("addon").flatMap((name) => name.match(/^(.+)\.node$/)?.[1] ?? []);
}

/**
 * Moves the addon and the kernels out of `@moba-js/cuda` into an optional package for each platform that was built, so that
 * installing compiles and downloads nothing, and other platforms get none of it.
 */
function splitCuda(workspace) {
  const cuda = join(workspace, "packages", "cuda");
  const manifest = readJson(join(cuda, "package.json"));
  for (const platform of builtPlatforms(workspace)) {
    const [os, cpu] = platform.split("-");
    const name = `${manifest.name}-${platform}`;
    const dir = join(workspace, "packages", `cuda-${platform}`);
    mkdirSync(dir);
    cpSync(join(cuda, "dist", "addon", `${platform}.node`), join(dir, "addon", `${platform}.node`));
    cpSync(join(cuda, "dist", "kernels"), join(dir, "kernels"), {
      recursive: true,
      filter: (path) => !path.endsWith(".hash"),
    });
    cpSync(join(cuda, "LICENSE"), join(dir, "LICENSE"));
    writeFileSync(
      join(dir, "README.md"),
      `# ${name}\n\nThe addon and the compiled kernels of \`${manifest.name}\` for ${platform}. Install that package.\n`,
    );
    writeJson(join(dir, "package.json"), {
      name,
      version: manifest.version,
      description: `The addon and compiled kernels of ${manifest.name} for ${platform}`,
      license: manifest.license,
      ...(manifest.repository ? { repository: manifest.repository } : {}),
      type: "module",
      engines: manifest.engines,
      os: [os],
      cpu: [cpu],
      ...(os === "linux" ? { libc: ["glibc"] } : {}),
      exports: { "./package.json": "./package.json" },
      files: ["addon", "kernels", "README.md", "LICENSE"],
    });
    manifest.optionalDependencies = { ...manifest.optionalDependencies, [name]: "workspace:*" };
  }
  manifest.files.push("!dist/addon", "!dist/kernels");
  writeJson(join(cuda, "package.json"), manifest);
}

/** Links the packages to each other, as an install would: `pnpm pack` reads their versions there, and TypeScript their types. */
function linkPackages(workspace) {
  const packages = publicPackages(workspace);
  for (const { dir, manifest } of packages) {
    for (const other of packages.filter(({ name }) => name in dependenciesOf(manifest))) {
      const link = join(dir, "node_modules", other.name);
      if (existsSync(link)) continue;
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

/** Moves the versions of a workspace as its changesets say, and writes the changelogs. */
export function bump(workspace) {
  execFileSync(tool("changeset"), ["version"], { cwd: workspace, stdio: "pipe" });
}
