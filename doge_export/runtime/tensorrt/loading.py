"""An engine folder -> TensorRT's engine on this machine's GPU, or one sentence that says why not."""

__all__ = ["Loaded", "load"]

from dataclasses import dataclass
from typing import Any

from doge_export.core.errors import DogeExportError
from doge_export.runtime.tensorrt.driver import Cuda
from doge_export.runtime.tensorrt.engine_folder import Engine
from doge_export.runtime.tensorrt.kinds import KINDS, Opened, how_to_get, open_kind
from doge_export.runtime.tensorrt.profiles import PROFILES
from doge_export.runtime.tensorrt.refusals import Log, engine_refusal, new_log


@dataclass(frozen=True)
class Loaded:
    """A loaded engine: `engine` is TensorRT's; it needs its `runtime` as long as it lives."""

    cuda: Cuda
    opened: Opened
    engine: Any
    runtime: Any
    log: Log

    def new_context(self, profile: str) -> Any:
        """An execution context with the profile of that name, and no more memory than that needs.

        Raises:
            DogeExportError: the memory of the GPU does not suffice.
        """
        trt, engine = self.opened.trt, self.engine
        options = engine.create_runtime_config()
        options.set_execution_context_allocation_strategy(
            trt.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE
        )
        kinds = getattr(trt, "DynamicShapesKernelSpecializationStrategy", None)
        if kinds is not None and profile == "decode":
            # TensorRT for RTX compiles kernels for a shape when it first meets it, in the background. A graph
            # would keep for ever what runs until they are there.
            options.dynamic_shapes_kernel_specialization_strategy = kinds.EAGER
        context = engine.create_execution_context(options)
        if context is None or not context.set_optimization_profile_async(
            PROFILES.index(profile), self.cuda.stream
        ):
            raise engine_refusal(self.opened.label, self.log, "make a context of")
        self.cuda.synchronize()
        return context

    def aliased(self, name: str) -> str | None:
        """The input whose memory the output `name` must have: a cache that is updated in place."""
        input_name: str | None = self.engine.get_aliased_input_tensor(name)
        return input_name or None

    def run(self, context: Any) -> None:
        """Put a call on the stream.

        Raises:
            DogeExportError: TensorRT refuses it.
        """
        if not context.execute_async_v3(self.cuda.stream):
            raise engine_refusal(self.opened.label, self.log, "run")


def load(engine: Engine) -> Loaded:
    """Read the file and put its weights on the GPU.

    Raises:
        DogeExportError: the TensorRT that built it is not installed, or another version is; there is no
            driver or no GPU, or another GPU than it was built for; or the file is damaged.
    """
    opened = _open(engine)
    cuda = Cuda.open()
    if cuda.capability not in engine.capabilities:
        built = " and ".join(engine.capabilities)
        raise DogeExportError(
            f"{engine.path} was built for compute capability {built}, and the GPU here, {cuda.name}, has "
            f"{cuda.capability}.",
            _for_this(opened, cuda),
        )
    log = new_log(opened.trt)
    runtime = opened.trt.Runtime(log)
    cuda_engine = runtime.deserialize_cuda_engine(engine.model_path.read_bytes())
    if cuda_engine is None:
        raise engine_refusal(opened.label, log, "load")
    names = {cuda_engine.get_tensor_name(index) for index in range(cuda_engine.num_io_tensors)}
    wanted = {spec.name for spec in (*engine.manifest.inputs, *engine.manifest.outputs)}
    if names != wanted or cuda_engine.num_optimization_profiles != len(PROFILES):
        raise DogeExportError(
            f"{engine.model_path} is not the engine that the manifest describes.",
            "Build it again with doge-export build-engine.",
        )
    return Loaded(cuda, opened, cuda_engine, runtime, log)


def _open(engine: Engine) -> Opened:
    """Load the TensorRT that built the engine."""
    if engine.runtime not in KINDS:
        raise DogeExportError(
            f"{engine.path} was built by {engine.runtime}, which this version does not know.",
            "Use the doge-export that built it.",
        )
    kind = KINDS[engine.runtime]
    if kind.module is None:
        raise DogeExportError(
            f"{engine.path} was built by {kind.label}, which is not installed here.",
            how_to_get(kind, "build it again with"),
        )
    opened = open_kind(kind.name)
    here = str(opened.trt.__version__)
    if here != engine.version:
        raise DogeExportError(
            f"{engine.path} was built by {kind.label} {engine.version}, and {here} is installed here: an "
            "engine is of one version.",
            "Build it again with doge-export build-engine, or install that version.",
        )
    return opened


def _for_this(opened: Opened, cuda: Cuda) -> str:
    if not opened.kind.portable:
        return "Build it again on this machine."
    try:
        opened.capabilities([cuda.capability])
    except DogeExportError:
        return f"{opened.kind.label} builds for no such GPU: build it again here with --runtime tensorrt."
    return f"Build it again with --sm {cuda.capability.replace('.', '')}."
