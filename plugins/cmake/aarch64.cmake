# For 64-bit ARM on Linux, with what `scripts/cross_tools.py aarch64` has unpacked:
#   cmake -S plugins -B build/aarch64 --toolchain "$PWD/plugins/cmake/aarch64.cmake"
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
include("${CMAKE_CURRENT_LIST_DIR}/cross.cmake")
