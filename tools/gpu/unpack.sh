#!/bin/sh
# Unpacks what tools/gpu/pack.mjs packed: sh unpack.sh [folder, ./moba-gpu when not given]
# Then: <folder>/moba conformance --backend cuda
#       <folder>/node <folder>/node_modules/@moba-js/cuda/tools/gpu-checks.mjs
#       python3 <folder>/peers/attention.py
set -eu
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "${1:-moba-gpu}"
target=$(cd "${1:-moba-gpu}" && pwd)
expand() {
  if command -v xz >/dev/null; then xz -dc "$1"; else
    python3 -c 'import lzma, shutil, sys; shutil.copyfileobj(lzma.open(sys.argv[1]), sys.stdout.buffer)' "$1"
  fi
}
expand "$here/app.tar.xz" | tar -xf - -C "$target"
expand "$here/node.xz" >"$target/node"
cat >"$target/moba" <<'END'
#!/bin/sh
here=$(cd "$(dirname "$0")" && pwd)
exec "$here/node" "$here/node_modules/@moba-js/cli/dist/main.js" "$@"
END
chmod +x "$target/node" "$target/moba"
echo "$target"
