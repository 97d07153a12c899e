"""The HTTP client: framing is removed for any segmentation of the bytes, times are kept."""

import pytest

from galley.cli.bench.backends import BACKENDS, Options, read_reply, request_body
from galley.cli.bench.client import Reply, Target, unframe
from galley.cli.bench.datasets import Sample

SAMPLE = Sample("Hello", 3, 5)


def reply(data, size):
    """A reply with the bytes in pieces of `size`, one per second."""
    pieces = [data[i : i + size] for i in range(0, len(data), size)]
    return Reply(0.0, [(float(i + 1), piece) for i, piece in enumerate(pieces)])


def chunked(*payloads):
    body = b"".join(f"{len(p):x}\r\n".encode() + p + b"\r\n" for p in payloads)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body + b"0\r\n\r\n"


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_chunks_are_reassembled_for_any_segmentation(size):
    payloads = [b"data: 1\n\n", b"0\r\n\r\n", b"x" * 300]
    answer = unframe(reply(chunked(*payloads), size))
    assert answer.status == 200
    assert [data for _, data in answer.pieces] == payloads
    assert answer.body == b"".join(payloads)


def test_chunk_time_is_that_of_its_last_byte():
    data = chunked(b"abcd", b"ef")
    whole = unframe(reply(data, len(data)))
    assert [when for when, _ in whole.pieces] == [1.0, 1.0]
    head, tail = data[:-8], data[-8:]
    split = unframe(Reply(0.0, [(1.0, head), (9.0, tail)]))
    assert [when for when, _ in split.pieces] == [1.0, 9.0]


@pytest.mark.parametrize("size", [3, 1000])
def test_bodies_without_chunks(size):
    data = b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\nnope"
    answer = unframe(reply(data, size))
    assert (answer.status, answer.body) == (404, b"nope")


@pytest.mark.parametrize("head", [b"Content-Length: 9", b"Transfer-Encoding: chunked"])
def test_truncated_answers_are_failures(head):
    data = b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n5\r\nhe"
    with pytest.raises(ValueError, match="breaks off"):
        unframe(reply(data, 100))


def test_missing_answer_is_reported():
    outcome = read_reply(Reply(0.0, []), SAMPLE)
    assert not outcome.success
    assert "without an answer" in outcome.error


def test_garbage_fails_the_request():
    assert not read_reply(reply(b"HTTP/1.1 200 OK\r\n\r\ndata: {oops\n", 100), SAMPLE).success
    assert not read_reply(reply(b"SSH-2.0-x\r\n\r\n", 100), SAMPLE).success


def test_requests_are_http_1_1_and_ask_to_close():
    target = Target.of("http://box:81/v1/completions?x=1", {"Authorization": "Bearer k"})
    data = target.request(b"{}", "id-1")
    assert data == (
        b"POST /v1/completions?x=1 HTTP/1.1\r\nHost: box:81\r\nConnection: close\r\n"
        b"Authorization: Bearer k\r\nX-Request-Id: id-1\r\nContent-Type: application/json\r\n"
        b"Content-Length: 2\r\n\r\n{}"
    )
    assert target.request(None).startswith(b"GET /v1/completions?x=1 HTTP/1.1\r\n")


def test_https_has_a_context_and_its_own_port():
    target = Target.of("https://box/v1", {}, insecure=True)
    assert target.port == 443
    assert target.context is not None
    assert not target.context.check_hostname
    with pytest.raises(ValueError, match="http"):
        Target.of("ftp://box", {})


def event(text):
    return b"data: " + text + b"\n\n"


def test_times_and_counts_of_a_stream():
    head = b"HTTP/1.1 200 OK\r\n\r\n"
    usage = (
        b'{"choices":[],"usage":{"prompt_tokens":11,"completion_tokens":4,'
        b'"prompt_tokens_details":{"cached_tokens":8}}}'
    )
    marks = [
        (1.0, head),
        (2.0, event(b'{"choices":[{"text":"a"}]}')),
        (4.0, event(b'{"choices":[{"text":""}]}') + event(b'{"choices":[{"text":"bc"}]}')),
        (7.0, event(b'{"choices":[{"text":"d","finish_reason":"length"}]}')),
        (8.0, event(usage) + b": a comment\n\n" + event(b"[DONE]")),
    ]
    outcome = read_reply(Reply(0.5, marks), SAMPLE)
    assert outcome.success
    assert outcome.text == "abcd"
    assert (outcome.ttft, outcome.itls, outcome.latency) == (1.5, [2.0, 3.0], 6.5)
    assert (outcome.prompt_tokens, outcome.output_tokens, outcome.cached_tokens) == (11, 4, 8)
    assert outcome.finish_reason == "length"
    assert outcome.tpot == pytest.approx(5.0 / 3)


def test_without_usage_pieces_are_counted():
    data = b"HTTP/1.1 200 OK\r\n\r\n" + event(b'{"choices":[{"text":"a"}]}') * 3
    outcome = read_reply(reply(data, 1000), SAMPLE)
    assert (outcome.prompt_tokens, outcome.output_tokens, outcome.cached_tokens) == (3, 3, None)


def test_chat_streams_and_reasoning_count_as_text():
    data = b"HTTP/1.1 200 OK\r\n\r\n"
    for delta in (b'"role":"assistant","content":""', b'"reasoning":"r"', b'"content":"c"'):
        data += event(b'{"choices":[{"delta":{' + delta + b"}}]}")
    assert read_reply(reply(data, 1000), SAMPLE).text == "rc"


def test_a_token_without_text_counts_by_its_id():
    head = b"HTTP/1.1 200 OK\r\n\r\n"
    marks = [
        (1.0, head + event(b'{"choices":[{"text":"","token_ids":[7]}]}')),
        (3.0, event(b'{"choices":[{"text":"a","token_ids":[8,9]}]}')),
    ]
    outcome = read_reply(Reply(0.5, marks), SAMPLE)
    assert (outcome.ttft, outcome.itls, outcome.text) == (0.5, [2.0], "a")


def test_errors_inside_a_stream_fail_the_request():
    data = b"HTTP/1.1 200 OK\r\n\r\n" + event(b'{"choices":[{"text":"a"}]}')
    data += event(b'{"error":{"message":"engine died"}}')
    outcome = read_reply(reply(data, 1000), SAMPLE)
    assert not outcome.success
    assert "engine died" in outcome.error


def test_bodies_by_backend():
    options = Options("m", ignore_eos=True, logprobs=2, extra={"temperature": 0})
    completion = request_body(BACKENDS["openai"], options, SAMPLE).decode()
    assert completion == (
        '{"model": "m", "prompt": "Hello", "max_tokens": 5, "stream": true, '
        '"stream_options": {"include_usage": true}, "ignore_eos": true, "logprobs": 2, '
        '"temperature": 0}'
    )
    chat = request_body(BACKENDS["openai-chat"], Options("m", stream=False), SAMPLE).decode()
    assert chat == (
        '{"model": "m", "messages": [{"role": "user", "content": "Hello"}], '
        '"max_completion_tokens": 5}'
    )


def test_empty_answer_is_complete():
    head = b"HTTP/1.1 200 OK\r\n\r\n"
    marks = [(1.0, head), (2.0, event(b'{"choices":[{"text":"","finish_reason":"stop"}]}'))]
    outcome = read_reply(Reply(0.5, marks), SAMPLE)
    assert outcome.success
    assert (outcome.text, outcome.output_tokens, outcome.itls) == ("", 0, [])
    assert (outcome.ttft, outcome.latency) == (1.5, 1.5)
    broken = [(1.0, head), (2.0, event(b'{"choices":[{"text":""}]}'))]
    assert read_reply(Reply(0.5, broken), SAMPLE).error == "the answer has no text"
