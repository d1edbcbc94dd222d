// A release: versions by the changesets, builds and tests everything, rehearses, commits, publishes, tags. Starts from a
// clean tree only. What is published already is left out, so that a release that was cut off can be run again.
import { spawnSync } from "node:child_process";
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { bump, pack, publicPackages, root, stage } from "./stage.mjs";

/** Where npm can prove which build a package comes from: GitHub Actions and GitLab CI, with an identity token. */
const canProve = () =>
  Boolean(
    process.env.ACTIONS_ID_TOKEN_REQUEST_URL ?? (process.env.GITLAB_CI && process.env.SIGSTORE_ID_TOKEN),
  );

/** @throws Error when the working tree in `dir` has changes that are not committed. */
export function requireCleanTree(dir) {
  const { status, stdout, stderr } = spawnSync("git", ["status", "--porcelain"], {
    cwd: dir,
    encoding: "utf8",
  });
  if (status !== 0) throw new Error(`not a git repository: ${stderr}`);
  if (stdout !== "") throw new Error(`the working tree is not clean; commit first:\n${stdout}`);
}

function run(command, ...args) {
  console.log(`> ${[command, ...args].join(" ")}`);
  const { status } = spawnSync(command, args, { cwd: root, stdio: "inherit" });
  if (status !== 0) throw new Error(`${command} failed; nothing after it was done`);
}

const isPublished = ({ name, version }) =>
  spawnSync("npm", ["view", `${name}@${version}`, "version"], { encoding: "utf8" }).stdout.trim() === version;

function release() {
  requireCleanTree(root);
  run("npm", "run", "setup");
  const pending = readdirSync(join(root, ".changeset")).some(
    (name) => name.endsWith(".md") && name !== "README.md",
  );
  if (pending) bump(root);
  const [{ version }] = publicPackages();
  run("npm", "test");
  run("node", "tools/release/rehearse.mjs");

  const temp = mkdtempSync(join(tmpdir(), "moba-js-release-"));
  try {
    stage(temp);
    const packages = pack(temp, join(temp, "tarballs"));
    if (!packages.some(({ name }) => name === "@moba-js/cuda-linux-x64"))
      throw new Error("@moba-js/cuda-linux-x64 is not built: it needs nvcc, g++, make and Python 3 on Linux");
    if (pending) {
      run("git", "add", "--all");
      run("git", "commit", "-m", `chore: release ${version}`);
    }
    const proof = canProve() ? ["--provenance"] : [];
    for (const found of packages.filter((found) => !isPublished(found)))
      run("npm", "publish", found.tarball, "--access", "public", ...proof);
  } finally {
    rmSync(temp, { recursive: true, force: true });
  }
  run("git", "tag", `v${version}`);
  console.log(`Released ${version}. Push it: git push origin HEAD --tags`);
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  try {
    release();
  } catch (error) {
    console.error(error.message);
    process.exit(1);
  }
}
