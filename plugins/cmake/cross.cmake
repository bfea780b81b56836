# Debian's compiler, in build/cross; tests run in an emulator, of the processor that QEMU_CPU names.
set(DOGE_CROSS "${CMAKE_CURRENT_LIST_DIR}/../../build/cross/${CMAKE_SYSTEM_PROCESSOR}/bin")
cmake_path(NORMAL_PATH DOGE_CROSS)
set(CMAKE_CXX_COMPILER "${DOGE_CROSS}/${CMAKE_SYSTEM_PROCESSOR}-linux-gnu-g++")
set(CMAKE_CROSSCOMPILING_EMULATOR "${DOGE_CROSS}/qemu-${CMAKE_SYSTEM_PROCESSOR}")
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
