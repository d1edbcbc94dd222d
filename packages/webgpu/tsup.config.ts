import { library } from "../../tools/tsup.config.base.js";

export default library({
  loader: { ".wgsl": "text" },
  dts: {
    compilerOptions: { ignoreDeprecations: "6.0" },
    banner: '/// <reference types="@webgpu/types" />', // for GPUDevice, where the user's own libraries lack it
  },
});
