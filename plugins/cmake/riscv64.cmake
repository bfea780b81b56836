# For 64-bit RISC-V on Linux, with what `scripts/cross_tools.py riscv64` has unpacked.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR riscv64)
include("${CMAKE_CURRENT_LIST_DIR}/cross.cmake")
