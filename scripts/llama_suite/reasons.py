"""Which of llama.cpp's server tests ask for their own model, or for what is llama.cpp's alone."""

__all__ = ["OWN_WORDS", "only_llama", "set_aside"]

from collections.abc import Mapping, Sequence

_DOWNLOAD = "needs a model to be downloaded"
_NUMBERS = "counts the tokens of the suite's own model"

#: Test -> parameters with words or numbers of the suite's own model. Those are not compared, the rest is; nor
#: are words that stand in the test itself.
OWN_WORDS: Mapping[str, Sequence[str]] = {
    "test_chat_completion": ("re_content", "n_prompt"),
    "test_chat_completion_stream": ("re_content", "n_prompt"),
    "test_chat_completion_with_openai_library": (),
    "test_completion": ("re_content", "n_prompt"),
    "test_completion_stream": ("re_content", "n_prompt"),
    "test_completion_stream_with_openai_library": (),
    "test_completion_with_openai_library": (),
    "test_responses_stream_with_openai_library": (),
    "test_responses_with_openai_library": (),
}

_SET_ASIDE: Mapping[str, str] = {
    "test_anthropic_vision_base64_with_multimodal_model": _DOWNLOAD,
    "test_chat_completion_cached_tokens": _NUMBERS,
    "test_completion_prompt_cache": _NUMBERS,
    "test_load_split_model": _DOWNLOAD,
    "test_local_media_file": _DOWNLOAD,
    "test_tokenize_with_bos": "knows the id that the suite's own model begins a text with",
}


def set_aside(function: str, slow: bool) -> str | None:
    """Why a test is not run; None where it is. Those that are marked slow are of larger models."""
    return _DOWNLOAD if slow else _SET_ASIDE.get(function)


#: What is llama.cpp's alone -> file -> its tests that ask for it. A test that fails is looked up here.
_ONLY_LLAMA: Mapping[str, Mapping[str, Sequence[str]]] = {
    "/completions as its own route, which is OpenAI's here": {
        "security": ("test_correct_api_key", "test_correct_api_key_anthropic_header"),
    },
    "probabilities after what changes them (post_sampling_probs)": {
        "completion": ("test_n_probs_post_backend_sampling", "test_n_probs_post_sampling"),
    },
    "the suite's own model: its token before a text": {"completion": ("test_completion_response_fields",)},
    "a limit of prompts that is no cache's (--ctx-size)": {"completion": ("test_nocache_long_input_prompt",)},
    'a stream begins with content null; OpenAI\'s, and ours, with ""': {
        "chat_completion": (
            "test_chat_completion_stream",
            "test_logprobs_stream",
        ),
        "tool_call": ("test_completion_without_tool_call_fast",),
    },
    "fields that are llama.cpp's own (verbose, id_slot, return_progress, timings_per_token)": {
        "chat_completion": (
            "test_chat_completion_with_timings_per_token",
            "test_chat_completions_multiple_choices",
            "test_chat_template",
            "test_chat_template_assistant_prefill",
            "test_chat_template_continue_final_message_vllm_compat",
            "test_return_progress",
            "test_verbose_debug",
        ),
        "compat_oai_responses": ("test_responses_stream_with_llama_telemetry",),
    },
    "its own routes (/props, files of its page)": {
        "basic": ("test_server_props",),
        "security": ("test_access_static_assets_without_api_key",),
    },
    "options of its command (several addresses, tags, --no-ui, --no-slots, tools, a proxy)": {
        "basic": (
            "test_no_ui",
            "test_server_model_aliases_and_tags",
            "test_server_multiple_addresses",
            "test_server_slots",
        ),
        "security": (
            "test_cors_origins_defaults_to_localhost_with_tools_enabled",
            "test_cors_proxy_only_forwards_explicit_proxy_headers",
        ),
    },
    "`*` for the headers that a page may send, which means none where cookies may be": {
        "security": ("test_cors_options",),
    },
    "its own kinds of errors (exceed_context_size_error, authentication_error, 500 for an image)": {
        "chat_completion": ("test_context_size_exceeded", "test_context_size_exceeded_stream"),
        "compat_anthropic": (
            "test_anthropic_tool_result_with_image",
            "test_anthropic_vision_format_accepted",
        ),
        "security": ("test_incorrect_api_key",),
    },
    "grammars in its own notation (GBNF)": {"chat_completion": ("test_completion_with_grammar",)},
    "chat templates that it has by name": {"chat_completion": ("test_apply_chat_template",)},
    "the variable `functions`, which it gives to every template": {"template": ("test_date_inside_prompt",)},
    "thinking, which is refused here, and in a history left out": {
        "compat_anthropic": ("test_anthropic_thinking", "test_anthropic_thinking_history_in_count_tokens"),
    },
    "refuses what OpenAI takes, or takes what Anthropic refuses (two answers in a row, no messages)": {
        "chat_completion": ("test_invalid_chat_completion_req",),
        "compat_anthropic": ("test_anthropic_empty_messages",),
    },
}
_WHY = {
    (file, function): reason
    for reason, files in _ONLY_LLAMA.items()
    for file, functions in files.items()
    for function in functions
}


def only_llama(file: str, name: str) -> str | None:
    """What a failed test asks for that is llama.cpp's alone; None where nobody knows."""
    return _WHY.get((file, name.partition("[")[0]))
