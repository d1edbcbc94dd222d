/** A published package of the workspace. */
export interface Package {
  readonly name: string;
  readonly version: string;
  /** Its folder, absolute. */
  readonly dir: string;
  readonly manifest: Manifest;
}

/** What is read of a package.json. */
export interface Manifest {
  readonly name: string;
  readonly version: string;
  readonly repository?: { readonly type: string; readonly url: string; readonly directory: string };
  readonly exports?: Readonly<Record<string, string | { readonly import?: { readonly types?: string } }>>;
}

/** The root of the workspace. */
export const root: string;
/** The published packages under `workspace`, what each depends on before it. */
export function publicPackages(workspace?: string): Package[];
/** Copies what a release needs from the workspace `from`, what is built too, into `target`. */
export function copyWorkspace(target: string, from?: string): void;
/** Copies the workspace `from` into `target` as it is published. */
export function stage(target: string, from?: string): void;
/** The public address of the git repository in `dir`, from its remote `origin`; undefined where that is none. */
export function repositoryOf(dir: string): { readonly type: "git"; readonly url: string } | undefined;
