//! What a peer can send that means no good, each by its name: the connection ends with the right code, or the limit holds.

use super::frame::{flag, kind, put_frame, put_headers, put_settings};
use super::tests::{LIMITS, Served, call_head, frames, greeted};
use super::{Broken, MOST_USELESS_FRAMES, ServerConnection, ServerEvent, ServerLimits, code};

fn broken_by(bytes: &[u8]) -> Broken {
    let mut served = greeted();
    served.server.output();
    let broken = served.feed(bytes).expect_err("these bytes break the connection");
    let said = served.server.output();
    assert!(said.windows(broken.why.len()).any(|part| part == broken.why.as_bytes()), "the peer is told why");
    broken
}

#[test]
fn bytes_that_break_the_protocol_end_the_connection_and_the_peer_is_told_why() {
    let head = call_head();
    let opened = |end: u8| frames(1, kind::HEADERS, flag::END_HEADERS | end, 1, &head);
    let cases: Vec<(&str, Vec<u8>, u32)> = vec![
        ("a frame over its limit", vec![0, 0x40, 1, kind::DATA, 0, 0, 0, 0, 1], code::FRAME_SIZE_ERROR),
        ("DATA on no stream", frames(1, kind::DATA, 0, 0, b"x"), code::PROTOCOL_ERROR),
        ("DATA of a call that was not begun", frames(1, kind::DATA, 0, 1, b"x"), code::PROTOCOL_ERROR),
        ("DATA after the end", [opened(0), frames(2, kind::DATA, flag::END_STREAM, 1, &[0; 5])].concat(), code::PROTOCOL_ERROR),
        ("HEADERS on no stream", frames(1, kind::HEADERS, flag::END_HEADERS, 0, &head), code::PROTOCOL_ERROR),
        ("HEADERS on an even stream", frames(1, kind::HEADERS, flag::END_HEADERS, 2, &head), code::PROTOCOL_ERROR),
        ("HEADERS in a call", [opened(0), opened(0)].concat(), code::PROTOCOL_ERROR),
        ("padding longer than its frame", frames(1, kind::HEADERS, flag::PADDED | flag::END_HEADERS, 1, &[200, 1]), code::PROTOCOL_ERROR),
        ("data padded over its end", [opened(0), frames(1, kind::DATA, flag::PADDED, 1, &[9, 1])].concat(), code::PROTOCOL_ERROR),
        ("padding without its length", [opened(0), frames(1, kind::DATA, flag::PADDED, 1, &[])].concat(), code::FRAME_SIZE_ERROR),
        ("a priority that is cut", frames(1, kind::HEADERS, flag::PRIORITY | flag::END_HEADERS, 1, &[0; 4]), code::FRAME_SIZE_ERROR),
        ("PRIORITY of another size", frames(1, kind::PRIORITY, 0, 1, &[0; 4]), code::FRAME_SIZE_ERROR),
        ("a block that is no HPACK", frames(1, kind::HEADERS, flag::END_HEADERS, 1, &[0x80]), code::COMPRESSION_ERROR),
        ("CONTINUATION of nothing", frames(1, kind::CONTINUATION, 0, 1, b""), code::PROTOCOL_ERROR),
        (
            "a block that is interrupted",
            [frames(1, kind::HEADERS, 0, 1, &head), frames(1, kind::PING, 0, 0, &[0; 8])].concat(),
            code::PROTOCOL_ERROR,
        ),
        ("PUSH_PROMISE", frames(1, kind::PUSH_PROMISE, 0, 1, &[0; 4]), code::PROTOCOL_ERROR),
        ("RST_STREAM of three bytes", frames(1, kind::RST_STREAM, 0, 1, &[0; 3]), code::FRAME_SIZE_ERROR),
        ("RST_STREAM of no stream", frames(1, kind::RST_STREAM, 0, 0, &[0; 4]), code::PROTOCOL_ERROR),
        ("RST_STREAM of a call that was not begun", frames(1, kind::RST_STREAM, 0, 1, &[0; 4]), code::PROTOCOL_ERROR),
        ("SETTINGS of a stream", frames(1, kind::SETTINGS, 0, 1, b""), code::PROTOCOL_ERROR),
        ("SETTINGS of seven bytes", frames(1, kind::SETTINGS, 0, 0, &[0; 7]), code::FRAME_SIZE_ERROR),
        ("an ack of settings with bytes", frames(1, kind::SETTINGS, flag::ACK, 0, &[0; 6]), code::FRAME_SIZE_ERROR),
        ("a window over its limit", frames(1, kind::SETTINGS, 0, 0, &[0, 4, 0x80, 0, 0, 0]), code::FLOW_CONTROL_ERROR),
        ("a frame size under its limit", frames(1, kind::SETTINGS, 0, 0, &[0, 5, 0, 0, 0, 1]), code::PROTOCOL_ERROR),
        ("PING of seven bytes", frames(1, kind::PING, 0, 0, &[0; 7]), code::FRAME_SIZE_ERROR),
        ("PING of a stream", frames(1, kind::PING, 0, 1, &[0; 8]), code::PROTOCOL_ERROR),
        ("GOAWAY of seven bytes", frames(1, kind::GOAWAY, 0, 0, &[0; 7]), code::FRAME_SIZE_ERROR),
        ("WINDOW_UPDATE by nothing", frames(1, kind::WINDOW_UPDATE, 0, 0, &[0; 4]), code::PROTOCOL_ERROR),
        ("WINDOW_UPDATE over the limit", frames(2, kind::WINDOW_UPDATE, 0, 0, &[0x7F, 0xFF, 0xFF, 0xFF]), code::FLOW_CONTROL_ERROR),
        (
            "a call's window over the limit",
            [opened(0), frames(2, kind::WINDOW_UPDATE, 0, 1, &[0x7F, 0xFF, 0xFF, 0xFF])].concat(),
            code::FLOW_CONTROL_ERROR,
        ),
        ("WINDOW_UPDATE of three bytes", frames(1, kind::WINDOW_UPDATE, 0, 0, &[0; 3]), code::FRAME_SIZE_ERROR),
        ("too many pings", frames(4, kind::PING, 0, 0, &[0; 8]), code::ENHANCE_YOUR_CALM),
        (
            "headers without end, in frames",
            [frames(1, kind::HEADERS, 0, 1, b""), frames(16, kind::CONTINUATION, 0, 1, b"")].concat(),
            code::ENHANCE_YOUR_CALM,
        ),
        (
            "headers without end, in bytes",
            [frames(1, kind::HEADERS, 0, 1, &[0; 16_000]), frames(4, kind::CONTINUATION, 0, 1, &[0; 16_000])].concat(),
            code::ENHANCE_YOUR_CALM,
        ),
    ];
    for (what, bytes, wanted) in cases {
        assert_eq!(broken_by(&bytes).code, wanted, "{what}");
    }
}

#[test]
fn frames_that_move_nothing_on_end_the_connection_when_they_are_too_many() {
    let head = call_head();
    let many = MOST_USELESS_FRAMES as usize;
    let opened = frames(1, kind::HEADERS, flag::END_HEADERS, 1, &head);
    let mut resets = Vec::new();
    for stream in (1..).step_by(2).take(many + 1) {
        put_headers(&mut resets, stream, false, &head);
        put_frame(&mut resets, kind::RST_STREAM, 0, stream, &[0; 4]);
    }
    for (what, bytes) in [
        ("SETTINGS", frames(many + 1, kind::SETTINGS, 0, 0, b"")),
        ("PRIORITY", frames(many + 1, kind::PRIORITY, 0, 1, &[0; 5])),
        ("unknown frames", frames(many + 1, 99, 0, 0, b"")),
        ("empty DATA", [opened.clone(), frames(many + 1, kind::DATA, 0, 1, b"")].concat()),
        ("WINDOW_UPDATE", frames(many + 1, kind::WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])),
        ("answers to pings that were not sent", frames(many + 1, kind::PING, flag::ACK, 0, &[0; 8])),
        ("calls that are reset at once", resets),
        ("resets of what has ended", [opened, frames(many + 2, kind::RST_STREAM, 0, 1, &[0; 4])].concat()),
    ] {
        let broken = broken_by(&bytes);
        assert_eq!((broken.code, broken.why), (code::ENHANCE_YOUR_CALM, "too many frames that move nothing on"), "{what}");
    }
}

#[test]
fn what_moves_nothing_on_is_forgiven_when_a_message_is_whole_and_after_a_time() {
    let many = MOST_USELESS_FRAMES as usize - 10;
    let mut served = greeted();
    for stream in (1..).step_by(2).take(3) {
        let mut sent = frames(many, kind::PRIORITY, 0, 1, &[0; 5]);
        put_headers(&mut sent, stream, false, &call_head());
        put_frame(&mut sent, kind::DATA, flag::END_STREAM, stream, &[0; 5]);
        served.feed(&sent).unwrap();
    }
    let mut server = greeted().server;
    for round in 0..3 {
        let sent = frames(many, kind::PRIORITY, 0, 1, &[0; 5]);
        assert_eq!(server.next(&sent, &mut 0, 11.0 * f64::from(round)), Ok(None));
    }
}

#[test]
fn more_data_than_its_window_ends_the_connection() {
    let mut sent = Vec::new();
    put_headers(&mut sent, 1, false, &call_head());
    put_frame(&mut sent, kind::DATA, 0, 1, &[0, 1, 0, 0, 0]); // 16 MiB to come, and no turn
    let mut server = greeted().server;
    let mut at = 0;
    assert!(matches!(server.next(&sent, &mut at, 0.0), Ok(Some(ServerEvent::Call(_)))));
    assert!(matches!(server.next(&sent, &mut at, 0.0), Ok(Some(ServerEvent::Wants { size_bytes: 0x0100_0000, granted_bytes: 0, .. }))));
    server.grant(1, 0x0100_0000);
    let more = frames(64, kind::DATA, 0, 1, &[0; 16_384]);
    let broken = server.next(&more, &mut 0, 0.0).expect_err("the call has not got its turn");
    assert_eq!((broken.code, broken.why), (code::FLOW_CONTROL_ERROR, "more data than the window of its call"));
}

#[test]
fn a_call_over_the_limit_of_streams_is_refused_untouched() {
    let mut sent = Vec::new();
    for stream in (1..).step_by(2).take(101) {
        put_headers(&mut sent, stream, false, &call_head());
    }
    let mut served = greeted();
    served.server.output();
    served.feed(&sent).unwrap();
    assert_eq!(served.events.len(), 100);
    let mut refused = Vec::new();
    put_frame(&mut refused, kind::RST_STREAM, 0, 201, &code::REFUSED_STREAM.to_be_bytes());
    assert_eq!(served.server.output(), refused);
}

#[test]
fn answers_that_the_peer_does_not_let_through_are_bounded() {
    let mut settings = Vec::new();
    put_settings(&mut settings, &[(4, 0)]); // it takes no byte of any answer
    let mut served = Served { server: ServerConnection::new(ServerLimits { max_concurrent_streams: 1000, ..LIMITS }), ..Served::new() };
    served.feed(super::frame::PREFACE).unwrap();
    served.feed(&settings).unwrap();
    for stream in (1..).step_by(2).take(100) {
        let mut sent = Vec::new();
        put_headers(&mut sent, stream, false, &call_head());
        put_frame(&mut sent, kind::DATA, flag::END_STREAM, stream, &[0; 5]);
        served.feed(&sent).unwrap();
        assert_eq!(served.server.respond(stream, vec![1; 1000]), Ok(()));
    }
    let mut sent = Vec::new();
    put_headers(&mut sent, 201, false, &call_head());
    put_frame(&mut sent, kind::DATA, flag::END_STREAM, 201, &[0; 5]);
    served.feed(&sent).unwrap();
    assert_eq!(served.server.respond(201, vec![1; 1000]).map_err(|broken| broken.why), Err("answers are not taken"));
}
