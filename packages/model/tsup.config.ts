import { library } from "../../tools/tsup.config.base.js";

export default library({ entry: ["src/index.ts", "src/node.ts"] });
