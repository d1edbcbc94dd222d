// A release: versions by the changesets, builds and tests everything, commits, publishes, tags. Starts from a clean tree only.
// What is published already is left out, so that a release that was cut off can be run again.
import { spawnSync } from "node:child_process";
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { builtPlatforms, bump, pack, publicPackages, repositoryOf, root, stage } from "./stage.mjs";

/** @throws Error when the working tree in `dir` has changes that are not committed. */
export function requireCleanTree(dir) {
  const { status, stdout, stderr } = spawnSync("git", ["status", "--porcelain"], {
    cwd: dir,
    encoding: "utf8",
  });
  if (status !== 0) throw new Error(`not a git repository: ${stderr}`);
  if (stdout !== "") throw new Error(`the working tree is not clean; commit first:\n${stdout}`);
}

/**
 * What npm is told, where it can prove which build a package comes from: GitHub Actions and GitLab CI, with an identity token.
 * @throws Error when it can, and the repository in `dir` has no public address for the proof to name
 */
export function provenance(dir, env = process.env) {
  const canProve = env.ACTIONS_ID_TOKEN_REQUEST_URL || (env.GITLAB_CI && env.SIGSTORE_ID_TOKEN);
  if (!canProve) return [];
  if (repositoryOf(dir)) return ["--provenance"];
  throw new Error("provenance names the repository's public address, and the git remote origin is none");
}

function run(cwd, command, ...args) {
  const line = [command, ...args].join(" ");
  console.log(`> ${line}`);
  const { status } = spawnSync(command, args, { cwd, stdio: "inherit" });
  if (status !== 0) throw new Error(`"${line}" failed; nothing after it was done`);
}

const isPublished = ({ name, version }) =>
  spawnSync("npm", ["view", `${name}@${version}`, "version"], { encoding: "utf8" }).stdout.trim() === version;

const isTagged = (dir, tag) =>
  spawnSync("git", ["rev-parse", "--quiet", "--verify", `refs/tags/${tag}`], { cwd: dir }).status === 0;

/**
 * Releases the workspace in `dir`. `check` builds and tests it at its new versions.
 * @returns the version
 * @throws Error when the tree is not clean, when there is nothing to release, or where a step fails
 */
export function release(dir, check) {
  requireCleanTree(dir);
  const proof = provenance(dir);
  const changesets = readdirSync(join(dir, ".changeset")).filter((name) => name.endsWith(".md"));
  const pending = changesets.some((name) => name !== "README.md");
  if (pending) bump(dir);
  const [{ version }] = publicPackages(dir);
  const tag = `v${version}`;
  if (isTagged(dir, tag)) throw new Error(`nothing to release: there is no changeset, and ${tag} is tagged`);
  check();

  const temp = mkdtempSync(join(tmpdir(), "moba-js-release-"));
  try {
    stage(join(temp, "workspace"), dir);
    const packages = pack(join(temp, "workspace"), join(temp, "tarballs"));
    if (pending) {
      run(dir, "git", "add", "--all");
      run(dir, "git", "commit", "--quiet", "-m", `chore: release ${version}`);
    }
    for (const { tarball } of packages.filter((found) => !isPublished(found)))
      run(dir, "npm", "publish", tarball, "--access", "public", "--loglevel=error", ...proof);
  } finally {
    rmSync(temp, { recursive: true, force: true });
  }
  run(dir, "git", "tag", tag);
  return version;
}

/** Everything that CI runs; and CUDA must be built, so that whoever installs it needs no compiler. */
function check() {
  run(root, "npm", "test");
  if (!builtPlatforms().includes("linux-x64"))
    throw new Error("@moba-js/cuda-linux-x64 is not built: it needs nvcc, g++, make and Python 3 on Linux");
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  try {
    const version = release(root, check);
    console.log(`Released ${version}. Push it: git push origin HEAD --tags`);
  } catch (error) {
    console.error(error.message);
    process.exit(1);
  }
}
