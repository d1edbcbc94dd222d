import { library } from "../../tools/tsup.config.base.js";

export default library({
  // The device is for the checks on a GPU, which launch kernels of their own.
  entry: ["src/index.ts", "src/browser.ts", "src/device.ts"],
  // The addon and the kernels are found beside the bundle, also from CommonJS, and stay when it is built again.
  shims: true,
  clean: ["!addon/**", "!kernels/**"],
});
