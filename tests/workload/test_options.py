import pytest

from gpuprof.errors import GpuprofError
from gpuprof.workload import Options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "--batch-size must be at least 1, not 0"),
        ({"seq_len": 0}, "--seq-len must be at least 1, not 0"),
        ({"mode": "generate", "new_tokens": -1}, "--new-tokens must be at least 1, not -1"),
        ({"mode": "eval"}, "--mode 'eval' is not one of: train, forward, generate"),
        ({"dtype": "int8"}, "--dtype 'int8' is not one of: bfloat16, bf16, float16, fp16, float32, fp32"),
        ({"mode": "forward", "optimizer": "adamw"}, "--optimizer is for --mode train: --mode forward trains"),
        ({"mode": "generate", "freeze": ("a",)}, "--freeze is for --mode train"),
        ({"mode": "forward", "checkpointing": "reentrant"}, "--checkpointing is for --mode train"),
        ({"new_tokens": 3}, "--new-tokens is for --mode generate, not --mode train"),
        ({"cache": "static"}, "--cache is for --mode generate, not --mode train"),
        ({"mode": "generate", "cache": "paged"}, "--cache 'paged' is not one of: dynamic, static"),
        ({"mode": "generate", "seq_len": 3}, "--seq-len is for --mode train and forward"),
        ({"compile": "lite"}, "--compile 'lite' is not one of: none, default, reduce-overhead, max-autotune, max-a"),
    ],
)
def test_what_contradicts_is_refused(options, message):
    with pytest.raises(GpuprofError) as caught:
        Options(**options)
    assert str(caught.value).startswith(message)
