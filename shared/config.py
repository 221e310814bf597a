"""The configuration of every room: small frozen dataclasses, parsed once by the launcher.

A field made by `flag` is a command-line flag and an environment variable, which
`shared/launching/flags.py` reads. A field without it is filled in by the launcher when it starts
the room.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.flag import flag, listed

DEMO_DIRECTORY = Path(__file__).resolve().parent.parent / "demo"
_DEMOS = {"demo": "chat", "demo-t5": "t5", "demo-whisper": "whisper"}
BUILT_IN_MODELS = {name: DEMO_DIRECTORY / folder for name, folder in _DEMOS.items()}


def is_local_path(hf_model: str) -> bool:
    """True for what can only be a directory, never an id on the Hub."""
    return hf_model.startswith(("/", "./", "../", "~"))


@dataclass(frozen=True)
class Identity:
    """Which room this is, in which of its lives, and where the run's sockets are."""

    kind: str  # "frontend", "tokenizer", "detokenizer", "worker" or "launcher"
    index: int
    epoch: int
    run_directory: str

    @property
    def room(self) -> str:
        """The room's name on the wire and in process titles, such as `worker-0`."""
        return f"{self.kind}-{self.index}"

    @property
    def address(self) -> str:
        """The endpoint of its inbox: another life has another path."""
        return f"ipc://{self.run_directory}/{self.room}.{self.epoch}"


NOBODY = Identity("nobody", 0, 0, "")  # until the launcher gives a room its name


@dataclass(frozen=True)
class ModelConfig:
    """Model"""

    hf_model: str = flag(
        "mesolitica/malaysian-llama2-7b-32k-instructions",
        "Hugging Face id or local directory; `demo`, `demo-t5` and `demo-whisper` are built in: a "
        "chat model, a T5, a Whisper",
        is_basic=True,
    )
    max_model_len: int = flag(
        0,
        "longest prompt plus answer, in tokens, of an encoder-decoder the longest answer; 0: what "
        "the model and the memory allow",
        at_least=0,
    )
    trust_remote_code: bool = flag(
        False, "run Python code that comes with the checkpoint, where transformers has no class"
    )

    @property
    def path(self) -> str:
        """What transformers' `from_pretrained` is given."""
        if self.hf_model in BUILT_IN_MODELS:
            return str(BUILT_IN_MODELS[self.hf_model])
        is_local = is_local_path(self.hf_model)
        return str(Path(self.hf_model).expanduser()) if is_local else self.hf_model


def _max_concurrent() -> Any:
    return flag(
        100, "most answers under way at once; others wait (--max-queue)", at_least=1, is_basic=True
    )


def _stall_timeout() -> Any:
    return flag(
        60.0,
        "seconds in which a process must get on with its work, such as the model's with a step; "
        "beyond it: /health is 503, and the process is replaced",
        at_least=1,
    )


@dataclass(frozen=True)
class FrontendConfig:
    """HTTP server"""

    identity: Identity = NOBODY
    socket_fd: int = -1  # the listening socket, held by the launcher
    sheet_fd: int = -1  # numbers that all frontends see, in memory that the launcher holds
    created: int = 0  # Unix seconds at which the server started
    num_frontends: int = 1  # that share its limits
    model: ModelConfig = ModelConfig()
    api_key: str = flag(
        "",
        "what callers must send as `Authorization: Bearer`; several are separated by commas; "
        "better set by the variable, as others can read a command line",
        unset="everybody may call",
        is_basic=True,
        is_secret=True,
    )
    served_model_name: str = flag(
        "",
        "the model's id in the API; further names after commas are aliases",
        unset="as in --hf-model, of a path its last part",
    )
    accept_any_model: bool = flag(False, "answer whatever model a request names; else 404")
    cors_origins: str = flag(
        "",
        "web pages' origins that may call from a browser, separated by commas; `*`: all",
        unset="none",
    )
    public_metrics: bool = flag(False, "serve /metrics without the API key")
    max_concurrent: int = _max_concurrent()
    max_queue: int = flag(
        100,
        "most answers that wait for a place beyond --max-concurrent; 0: none; beyond it: 429",
        at_least=0,
    )
    queue_timeout: float = flag(
        30.0, "most seconds a request waits for a place; beyond it: 503", at_least=0.001
    )
    max_n: int = flag(128, "most answers to one prompt; never above --max-concurrent", at_least=1)
    strict_max_tokens: bool = flag(
        False, "refuse a max_tokens above what the context leaves; else it is lowered"
    )
    default_completion_max_tokens: int = flag(
        16, "max_tokens of a /v1/completions request that names none", at_least=1
    )
    reasoning_field: str = flag(
        "both",
        "where a message holds the model's thoughts; `none`: in the content, as they were written",
        choices=("both", "reasoning_content", "reasoning", "none"),
    )
    first_token_timeout: float = flag(
        300.0, "most seconds from a request's place to its first token; else: 504", at_least=0.001
    )
    request_timeout: float = flag(
        600.0, "most seconds a request may take; beyond it: 504", at_least=0.001
    )
    upload_timeout: float = flag(
        120.0, "most seconds from a request's header to the end of its body", at_least=0.001
    )
    write_timeout: float = flag(
        30.0, "seconds after which a client that takes nothing of its answer has gone", at_least=1
    )
    stall_timeout: float = _stall_timeout()

    @property
    def model_name(self) -> str:
        """The model's id in the API: of a path only the last part, a Hub id whole."""
        hf_model = self.model.hf_model
        if names := listed(self.served_model_name):
            return names[0]
        if not hf_model.startswith(("/", ".", "~")):
            return hf_model
        path = Path(hf_model)
        return path.name if path.name.strip(".") else path.resolve().name  # `.` and `..`

    @property
    def model_aliases(self) -> tuple[str, ...]:
        """Further names that mean the same model."""
        return listed(self.served_model_name)[1:]

    @property
    def api_keys(self) -> tuple[str, ...]:
        """The keys of which a caller must send one; none: everybody may call."""
        return listed(self.api_key)


@dataclass(frozen=True)
class TokenizerConfig:
    """Tokenizer processes"""

    identity: Identity = NOBODY
    model: ModelConfig = ModelConfig()
    tokenizer_type: str = flag(
        "", "transformers class of the tokenizer, such as AutoTokenizer", unset="by the checkpoint"
    )
    processor_type: str = flag(
        "",
        "transformers class that prepares the input; of a text model its tokenizer's",
        unset="by the checkpoint",
    )
    tokenizer_use_fast: bool = flag(
        True, "transformers 5 has only fast tokenizers: false changes nothing"
    )
    chat_template: str = flag(
        "", "Jinja file used in place of the checkpoint's chat template", unset="the checkpoint's"
    )
    max_audio_seconds: float = flag(
        3600.0, "longest sound that is put into words, in seconds", at_least=1
    )


@dataclass(frozen=True)
class DetokenizerConfig:
    """Detokenizer processes"""

    identity: Identity = NOBODY


@dataclass(frozen=True)
class WorkerConfig:
    """Worker"""

    identity: Identity = NOBODY
    model: ModelConfig = ModelConfig()
    max_concurrent: int = _max_concurrent()
    model_type: str = flag(
        "", "transformers class, such as AutoModelForCausalLM", unset="by the checkpoint"
    )
    architecture_type: str = flag(
        "",
        "what the checkpoint must be",
        choices=("decoder", "encoder-decoder"),
        unset="by the checkpoint",
    )
    serving_type: str = flag(
        "",
        "what the checkpoint must be for: text, or sound",
        choices=("chat", "whisper"),
        unset="by the checkpoint",
    )
    allow_pickle_weights: bool = flag(
        False,
        "load pytorch_model.bin where there are no safetensors, by torch.load(weights_only=True)",
    )
    torch_dtype: str = flag(
        "",
        "weights and KV cache; `auto`: the device's fastest",
        choices=("auto", "float32", "float16", "bfloat16"),
        unset="bfloat16, on a CPU without bfloat16 arithmetic float32",
        is_basic=True,
    )
    accelerator_type: str = flag(
        "",
        "device of the model",
        choices=("cuda", "cpu"),
        unset="cuda if there is a GPU, else cpu",
        is_basic=True,
    )
    generation_config: str = flag(
        "auto",
        "`auto`: the checkpoint's generation config gives the sampling that a request leaves out",
        choices=("auto", "none"),
    )
    override_generation_config: str = flag(
        "",
        "JSON object of sampling for what a request leaves out: temperature, top_p, top_k, min_p, "
        "repetition_penalty",
        unset="nothing",
    )
    quantization: str = flag(
        "",
        "int8: small weights for speed, on the CPU; another precision than --torch-dtype",
        choices=("int8",),
        unset="none",
    )
    hqq: bool = flag(False, "int4 weights by HQQ, for memory; made at the first start, minutes")
    torch_compile: bool = flag(
        False,
        "compile the forward pass by torch.compile before the first request; minutes at first. Of "
        "an encoder-decoder, the decode step: encoders, prompts and the head stay stock code",
    )
    torch_compile_mode: str = flag(
        "reduce-overhead",
        "mode of --torch-compile; in each, CUDA graphs are --cuda-graphs; on the CPU all are alike",
        choices=("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"),
    )
    continuous_batching_batch_size: int = flag(
        20,
        "most sequences in one step",
        env=("CONTINUOUS_BATCHING_BATCH_SIZE", "CONTINOUS_BATCHING_BATCH_SIZE"),
        aliases=("--continous-batching-batch-size",),
        at_least=1,
    )
    continuous_batching_microsleep: float = flag(
        0.001,
        "seconds an idle worker waits for companions of the first arrival",
        env=("CONTINUOUS_BATCHING_MICROSLEEP", "CONTINOUS_BATCHING_MICROSLEEP"),
        aliases=("--continous-batching-microsleep",),
        at_least=0,
    )
    max_num_batched_tokens: int = flag(
        512,
        "token budget of one step, decode and prefill together; never under the batch size",
        at_least=1,
    )
    kv_cache_memory_fraction: float = flag(
        0.0,
        "most of the free memory for the KV cache; 0: 0.9 on a GPU, 0.5 on the CPU",
        at_least=0,
        at_most=1,
    )
    max_encoder_len: int = flag(
        0,
        "longest prompt of an encoder-decoder, in tokens; 0: what the model was trained with",
        at_least=0,
    )
    static_cache: bool = flag(
        False, "size the KV cache for batch size × the lengths below, in place of by free memory"
    )
    static_cache_encoder_max_length: int = flag(
        256, "longest encoder input under --static-cache; encoder-decoders only", at_least=1
    )
    static_cache_decoder_max_length: int = flag(
        256, "longest prompt plus answer under --static-cache, in tokens", at_least=1
    )
    prefix_caching: bool = flag(
        True, "keep finished prompts' KV blocks for prompts that begin alike"
    )
    cuda_graphs: bool = flag(True, "replay decode steps as CUDA graphs; a GPU only")
    overlap: str = flag(
        "auto", "launch a decoder's steps ahead; `auto`: on a GPU", choices=("auto", "on", "off")
    )
    cpu_kernels: bool = flag(
        True, "compile and use the native CPU kernels where this machine can; else plain torch"
    )
    cpu_kernels_directory: str = flag(
        "",
        "where compiled CPU kernels are kept, what --torch-compile made, and quantised weights",
        env=("CPU_KERNELS_DIRECTORY", "CACHE_DIRECTORY"),
        unset="~/.cache/transformers-openai-api",
    )
    cpu_threads: int = flag(
        0,
        "threads of a step on the CPU; 0: all cores but one, which the other processes need",
        at_least=0,
        at_most=1024,
    )
    torch_profiling: bool = flag(
        False,
        "torch.profiler around the first steps: a table and a Chrome trace; SIGUSR2: at any time",
        env=("TORCH_PROFILING", "TORCH_AUTOGRAD_PROFILING"),
        aliases=("--torch-autograd-profiling",),
    )
    torch_profiling_steps: int = flag(200, "most steps that are recorded at a time", at_least=1)
    torch_profiling_directory: str = flag(
        "", "where the Chrome trace goes", unset="the system's directory for temporary files"
    )


@dataclass(frozen=True)
class LauncherConfig:
    """Launcher"""

    host: str = flag("0.0.0.0", "bind address", env=("HOST", "HOSTNAME"), is_basic=True)  # noqa: S104 — as the original
    port: int = flag(7088, "bind port; 0: any free port", at_least=0, at_most=65535, is_basic=True)
    loglevel: str = flag(
        "INFO", "log level", choices=("DEBUG", "INFO", "WARNING", "ERROR"), is_basic=True
    )
    log_format: str = flag("text", "lines for people or for machines", choices=("text", "json"))
    config: str = flag(
        "",
        "YAML or JSON file of flags by their names, with - or _",
        env=("CONFIG_FILE",),
        unset="no file",
        is_basic=True,
    )
    print_config: bool = flag(False, "print every flag, its value and where it is from, and exit")
    run_directory: str = flag(
        "",
        "directory for sockets, private to the user",
        env=("RUN_DIRECTORY", "RUNTIME_DIRECTORY"),
        unset="under $XDG_RUNTIME_DIR or /tmp",
    )
    frontend_processes: int = flag(
        1, "HTTP processes, on one port and within the same limits", at_least=1, at_most=64
    )
    tokenizer_processes: int = flag(1, "tokenizer processes", at_least=1)
    detokenizer_processes: int = flag(1, "detokenizer processes", at_least=1, at_most=64)
    restart_limit: int = flag(
        3,
        "deaths in 10 minutes that a restart mends; one more ends the service, with status 70",
        at_least=0,
    )
    stall_timeout: float = _stall_timeout()
    drain_timeout: float = flag(
        30.0, "most seconds that running requests have to end after SIGTERM", at_least=0
    )


@dataclass(frozen=True)
class ServerConfig:
    """All rooms together, as the launcher reads it from flags and environment."""

    launcher: LauncherConfig = LauncherConfig()
    frontend: FrontendConfig = FrontendConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    detokenizer: DetokenizerConfig = DetokenizerConfig()
    worker: WorkerConfig = WorkerConfig()
