use super::super::exception;
use super::*;
use proptest::prelude::*;

/// The groups of a text: the first lines of each, and whether it is a trace.
fn groups(text: &str) -> Vec<(String, bool)> {
    let mut found: Vec<(String, Option<Group>)> = Vec::new();
    for line in text.lines() {
        if let Some((joined, Some(group))) = found.last_mut()
            && group.next(line.as_bytes())
        {
            joined.push('\n');
            joined.push_str(line);
            continue;
        }
        found.push((line.to_owned(), begin(line.as_bytes())));
    }
    found.into_iter().map(|(text, group)| (text.trim_end().to_owned(), group.is_some_and(|group| group.is_trace()))).collect()
}

/// A trace with a line before and behind it is one group, and its exception is that.
fn is_one(trace: &str, kind: &str, message: &str) {
    let text = format!("before\n{trace}\nafter it\n");
    let found = groups(&text);
    assert_eq!(found, [("before".into(), false), (trace.to_owned(), true), ("after it".into(), false)], "{trace}");
    let exception = exception::of(trace.as_bytes());
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert_eq!((text(exception.kind), text(exception.message)), (kind.to_owned(), message.to_owned()), "{trace}");
    assert!(trace.ends_with(&text(exception.stacktrace)) && !exception.stacktrace.is_empty(), "{trace}");
    assert!(!exception.head.is_empty() || !exception.summary.is_empty(), "{trace}");
}

const PYTHON: &str = "Traceback (most recent call last):\n  File \"/app/main.py\", line 3, in <module>\n    run()\n    ~~~^^\n  File \"/app/main.py\", line 1, in run\n    raise ValueError(\"bad: value\")\nValueError: bad: value";

#[test]
fn pythons_traces_are_one_group() {
    is_one(PYTHON, "ValueError", "bad: value");
    is_one(&format!("2025-10-09 08:53:20,000 ERROR it failed\n{PYTHON}"), "ValueError", "bad: value");
    is_one("Traceback (most recent call last):\n  File \"x.py\", line 1\nKeyboardInterrupt", "KeyboardInterrupt", "");
    is_one(
        &format!(
            "{PYTHON}\n\nDuring handling of the above exception, another exception occurred:\n\n{PYTHON}\n\nThe above exception was the direct cause of the following exception:\n\nTraceback (most recent call last):\n  File \"x.py\", line 1, in f\n    g()\napp.Oops: last"
        ),
        "app.Oops",
        "last",
    );
    is_one(
        "Traceback (most recent call last):\n  File \"x.py\", line 1, in f\npydantic_core._pydantic_core.ValidationError: 1 validation error for Job\nid\n".trim_end_matches("\nid\n"),
        "pydantic_core._pydantic_core.ValidationError",
        "1 validation error for Job",
    );
    is_one(
        "Traceback (most recent call last):\n  File \"x.py\", line 1, in f\nRuntimeError: CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously reported at some other API call.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1",
        "RuntimeError",
        "CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously reported at some other API call.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1",
    );
    is_one(
        "  + Exception Group Traceback (most recent call last):\n  |   File \"x.py\", line 1, in <module>\n  | ExceptionGroup: two (2 sub-exceptions)\n  +-+---------------- 1 ----------------\n    | ValueError: 1\n    +------------------------------------",
        "ExceptionGroup",
        "two (2 sub-exceptions)",
    );
}

const NODE: &str = "TypeError: Cannot read properties of undefined (reading 'id')\n    at handler (/app/index.js:3:9)\n    at process.processTicksAndRejections (node:internal/process/task_queues:95:5)";

#[test]
fn nodes_traces_are_one_group() {
    is_one(NODE, "TypeError", "Cannot read properties of undefined (reading 'id')");
    is_one(&format!("[2025-10-09T08:53:20Z] ERROR: it failed\n{NODE}"), "TypeError", "Cannot read properties of undefined (reading 'id')");
    is_one("error: request failed Error: boom\n    at f (/app/x.js:1:1)", "Error", "boom");
    is_one(
        "Error: connect ECONNREFUSED 127.0.0.1:6379\n    at TCPConnectWrap.afterConnect [as oncomplete] (node:net:1555:16) {\n  errno: -111,\n  code: 'ECONNREFUSED',\n  [cause]: Error: inner\n      at f (x.js:1:1)\n}",
        "Error",
        "connect ECONNREFUSED 127.0.0.1:6379",
    );
    is_one(
        "/app/index.js:3\n    throw new Error('boom');\n    ^\n\nError: boom\n    at Object.<anonymous> (/app/index.js:3:11)\n    at Module._compile (node:internal/modules/cjs/loader:1364:14)\n\nNode.js v20.11.1",
        "Error",
        "boom",
    );
    is_one(
        "Error: Cannot find module 'x'\nRequire stack:\n- /app/index.js\n    at Module._resolveFilename (node:internal/modules/cjs/loader:1144:15)",
        "Error",
        "Cannot find module 'x'\nRequire stack:\n- /app/index.js",
    );
    is_one("Uncaught RangeError [ERR_OUT]: too far\n    at f (x.js:1:1)", "RangeError", "too far");
}

#[test]
fn javas_traces_are_one_group() {
    let frames = "\tat com.foo.Bar.run(Bar.java:12)\n\tat java.base/java.lang.Thread.run(Thread.java:840)";
    let cause = "Caused by: java.io.IOException: disk\n\tat com.foo.Disk.read(Disk.java:3)\n\t... 12 more";
    is_one(
        &format!("Exception in thread \"main\" java.lang.IllegalStateException: boom\n{frames}\n{cause}"),
        "java.lang.IllegalStateException",
        "boom",
    );
    is_one(
        &format!(
            "2025-10-09 08:53:20.000 [main] ERROR c.f.Bar - failed\njava.lang.NullPointerException\n{frames}\n\tSuppressed: java.lang.Error: x\n\t\tat a.B.c(B.java:1)"
        ),
        "java.lang.NullPointerException",
        "",
    );
    is_one(&format!("java.lang.RuntimeException: outer\n{frames}"), "java.lang.RuntimeException", "outer");
}

#[test]
fn gos_traces_are_one_group() {
    let stack = "goroutine 1 [running]:\nmain.main()\n\t/app/main.go:12 +0x1d";
    is_one(
        &format!("panic: runtime error: index out of range [5] with length 3\n\n{stack}\nexit status 2"),
        "panic",
        "runtime error: index out of range [5] with length 3",
    );
    is_one(
        &format!(
            "panic: boom [recovered]\n\tpanic: boom\n[signal SIGSEGV: segmentation violation code=0x1 addr=0x0 pc=0x1]\n\n{stack}\ncreated by main.start in goroutine 1\n\t/app/main.go:5 +0x2\n\ngoroutine 7 [chan receive, 2 minutes]:\nnet/http.(*conn).serve(0xc000, {{0x1, 0x2}})\n\t/usr/go/server.go:1 +0x1"
        ),
        "panic",
        "boom [recovered]",
    );
    is_one(
        &format!("fatal error: all goroutines are asleep - deadlock!\n\n{stack}"),
        "fatal error",
        "all goroutines are asleep - deadlock!",
    );
    is_one(&format!("2025/10/09 08:53:20 http: panic serving 10.0.0.7:5: boom\n{stack}"), "panic", "boom");
}

#[test]
fn rusts_traces_are_one_group() {
    let backtrace = "stack backtrace:\n   0: rust_begin_unwind\n             at /rustc/abc/library/std/src/panicking.rs:645:5\n   1: core::panicking::panic_fmt\n   2: app::main";
    let note = "note: Some details are omitted, run with `RUST_BACKTRACE=full` for a verbose backtrace.";
    is_one(
        &format!("thread 'main' panicked at src/main.rs:2:5:\nindex out of bounds: the len is 3 but the index is 5\n{backtrace}\n{note}"),
        "panic",
        "index out of bounds: the len is 3 but the index is 5",
    );
    is_one(
        "thread 'tokio-runtime-worker' panicked at src/main.rs:2:5:\nassertion `left == right` failed\n  left: 1\n right: 2\nnote: run with `RUST_BACKTRACE=1` environment variable to display a backtrace",
        "panic",
        "assertion `left == right` failed\n  left: 1\n right: 2",
    );
    is_one("thread 'main' panicked at 'it''s, bad', src/main.rs:2:5\nnote: run with `RUST_BACKTRACE=1`", "panic", "it''s, bad");
    is_one("Error: reading the file\n\nCaused by:\n    0: opening\n    1: no such file", "Error", "reading the file");
}

#[test]
fn lines_that_are_no_trace_stay_lines_of_their_own() {
    let text = "starting\nERROR one failed\nERROR two failed\n  indented\nat home\n/app/index.js\nINFO ready\npanic attack\nquiet\nError: alone\nError: again\nfatal errors: 3\ngoroutine 5\nkey: value\n";
    let found = groups(text);
    assert_eq!(found.len(), text.lines().count(), "{found:?}");
    assert!(found.iter().all(|(_, is_trace)| !is_trace), "{found:?}");
}

#[test]
fn two_traces_one_after_the_other_are_two() {
    assert_eq!(groups(&format!("{PYTHON}\n{PYTHON}\n{NODE}\n{NODE}")).len(), 4);
}

#[test]
fn a_group_has_an_end_however_many_lines_look_like_frames() {
    let text = format!("Error: boom\n{}", "    at f (x.js:1:1)\n".repeat(5 * MOST_LINES as usize));
    assert!(groups(&text).len() >= 5);
}

proptest! {
    #[test]
    fn no_line_is_lost_or_moved_whatever_the_lines_are(
        picks in proptest::collection::vec((0usize..40, ".{0,12}"), 0..60),
    ) {
        let all = format!("{PYTHON}\n\n{NODE}\npanic: x\n\ngoroutine 1 [running]:\nthread 'a' panicked at x:\nCaused by: y\n/a.js:1\nDuring handling of the above exception, x\n}}\n^\n");
        let pool: Vec<&str> = all.lines().collect();
        let lines: Vec<String> = picks.into_iter().map(|(at, other)| pool.get(at).map_or(other, |line| (*line).to_owned())).collect();
        let text = lines.join("\n");
        let joined: Vec<String> = groups(&text).into_iter().map(|(text, _)| text).collect();
        let words = |text: &str| text.split('\n').map(str::trim_end).filter(|line| !line.is_empty()).map(str::to_owned).collect::<Vec<_>>();
        prop_assert_eq!(words(&joined.join("\n")), words(&text.lines().collect::<Vec<_>>().join("\n")));
        for text in joined {
            let found = exception::of(text.as_bytes());
            prop_assert!(found.stacktrace.len() <= text.len());
        }
    }
}
