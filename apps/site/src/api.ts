// The pages of the API, from the doc comments of every package's entry points.
import { join } from "node:path";
import { Application } from "typedoc";
import { publicPackages } from "../../../tools/release/stage.mjs";

/** The entry points of the packages of `root`: what is imported, by source file. */
function entryPoints(root: string): Map<string, string> {
  const entries = publicPackages(root).flatMap(({ name, dir, manifest }) =>
    Object.entries(manifest.exports ?? {}).flatMap(([path, target]) => {
      const types = typeof target === "string" ? undefined : target.import?.types;
      if (!types) return [];
      const source = types.replace(/^\.\/dist\/(.+)\.d\.ts$/, "src/$1.ts");
      return [[join(dir, source), path === "." ? name : `${name}/${path.slice(2)}`] as const];
    }),
  );
  return new Map(entries);
}

/** Writes the pages of the API of the packages in `root` into `target/api`, and what the sidebar shows of them. */
export async function writeApi(root: string, target: string): Promise<void> {
  const specifiers = entryPoints(root);
  const app = await Application.bootstrapWithPlugins({
    plugin: ["typedoc-plugin-markdown", "typedoc-vitepress-theme"],
    entryPoints: [...specifiers.keys()],
    tsconfig: join(root, "tsconfig.json"),
    out: join(target, "api"),
    docsRoot: target,
    readme: "none",
    name: "API",
    excludeInternal: true,
    excludePrivate: true,
    disableSources: true,
    outputFileStrategy: "modules",
    parametersFormat: "table",
    interfacePropertiesFormat: "table",
    logLevel: "Warn",
    skipErrorChecking: true, // a check of its own
  } as Parameters<typeof Application.bootstrapWithPlugins>[0]);
  const points = app.getEntryPoints();
  if (!points) throw new Error("no API to document");
  for (const point of points) {
    point.displayName = specifiers.get(point.sourceFile.fileName) ?? point.displayName;
  }
  const project = app.converter.convert(points);
  app.validate(project);
  await app.generateOutputs(project);
  if (app.logger.hasErrors()) throw new Error("the API cannot be documented; see above");
}
