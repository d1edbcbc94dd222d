import { library } from "../../tools/tsup.config.base.js";
import { wgsl } from "./tools/wgsl.js";

export default library({
  esbuildPlugins: [wgsl],
  dts: {
    compilerOptions: { ignoreDeprecations: "6.0" },
    banner: '/// <reference types="@webgpu/types" />', // for GPUDevice, where the user's own libraries lack it
  },
});
