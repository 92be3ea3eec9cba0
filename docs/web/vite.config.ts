import { defaultClientConditions, defineConfig } from "vite";

// Threads need shared memory, which browsers give only to pages that are isolated from other sites.
const headers = {
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
};

export default defineConfig({
  base: "./", // the page works in any folder of a site
  assetsInclude: ["**/*.onnx", "**/*.flac"],
  // ONNX Runtime without its wasm inside: one copy, fetched when it is needed.
  resolve: { conditions: ["onnxruntime-web-use-extern-wasm", ...defaultClientConditions] },
  worker: { format: "es" },
  build: { target: "es2022", assetsInlineLimit: 0 },
  server: { headers, fs: { allow: ["../.."] } }, // the engines lie at the top of the checkout
  preview: { headers },
});
