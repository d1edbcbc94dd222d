import { library } from "../../tools/tsup.config.base.js";

export default library();
