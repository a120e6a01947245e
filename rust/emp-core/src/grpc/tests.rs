//! Both ends, against each other and against bytes that mean no good: nothing panics, nothing is held that was not granted.

use proptest::prelude::*;

use super::frame::{flag, kind, put_frame, put_settings};
use super::hpack::put_field;
use super::{Broken, ClientConnection, ClientEvent, ServerConnection, ServerEvent, ServerLimits, code};

pub(super) const LIMITS: ServerLimits = ServerLimits { max_concurrent_streams: 100, min_ping_interval_s: 10.0 };
const PATH: &str = "/service/Method";
/// What a connection may hold beside what was granted: a frame, a block of headers, HPACK's table and its two strings.
const MOST_OWN_BYTES: usize = 16_384 + 65_536 + 4_096 + 2 * 65_536;

fn call_fields() -> Vec<(String, String)> {
    let fields = [(":method", "POST"), (":scheme", "http"), (":path", PATH), (":authority", "a"), ("content-type", "application/grpc")];
    fields.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec()
}

pub(super) fn call_head() -> Vec<u8> {
    let mut head = Vec::new();
    for (name, value) in call_fields() {
        put_field(&mut head, name.as_bytes(), value.as_bytes(), false);
    }
    head
}

/// A server with a caller that grants within a budget and gives every call its turn.
pub(super) struct Served {
    pub server: ServerConnection,
    pub budget_bytes: usize,
    pub granted_bytes: usize,
    pub events: Vec<String>,
    pub messages: Vec<(u32, Vec<u8>)>,
}

impl Served {
    pub(super) fn new() -> Self {
        Self { server: ServerConnection::new(LIMITS), budget_bytes: 8 << 20, granted_bytes: 0, events: Vec::new(), messages: Vec::new() }
    }

    pub(super) fn feed(&mut self, input: &[u8]) -> Result<(), Broken> {
        let mut at = 0;
        while let Some(event) = self.server.next(input, &mut at, 0.0)? {
            match event {
                ServerEvent::Call(call) => {
                    self.server.give_turn(call.stream);
                    self.events.push(format!("call {} {} {:?}", call.stream, call.path, call.problem));
                }
                ServerEvent::Wants { stream, more_bytes, size_bytes, granted_bytes } => {
                    assert!(granted_bytes + more_bytes <= size_bytes);
                    if self.granted_bytes + more_bytes > self.budget_bytes {
                        self.server.fail(stream, 14, "no room", &[]);
                    } else {
                        self.granted_bytes += more_bytes;
                        self.server.grant(stream, more_bytes);
                    }
                }
                ServerEvent::Message { stream, message } => {
                    self.events.push(format!("message {stream} {} {}", message.flag, message.data.len()));
                    self.messages.push((stream, message.data));
                }
                ServerEvent::NoMessage { stream, is_torn } => {
                    self.events.push(format!("no message {stream} {is_torn}"));
                    self.server.fail(stream, 3, "no message", &[]);
                }
                ServerEvent::Gone { stream } => self.events.push(format!("gone {stream}")),
            }
            assert!(self.server.held_bytes() <= self.granted_bytes + MOST_OWN_BYTES);
        }
        assert_eq!(at, input.len(), "all is read");
        Ok(())
    }
}

pub(super) fn greeted() -> Served {
    let mut served = Served::new();
    let mut client = ClientConnection::<Vec<u8>>::default();
    served.feed(&client.output(usize::MAX)).unwrap();
    served
}

pub(super) fn frames(count: usize, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for _ in 0..count {
        put_frame(&mut out, kind, flags, stream, payload);
    }
    out
}

/// What a client sends for so many calls.
fn calls(bodies: &[Vec<u8>]) -> Vec<u8> {
    let mut client = ClientConnection::<Vec<u8>>::default();
    let mut greeting = Vec::new();
    put_settings(&mut greeting, &[(4, 1 << 20)]);
    put_frame(&mut greeting, kind::WINDOW_UPDATE, 0, 0, &(8_u32 << 20).to_be_bytes());
    assert_eq!(client.next(&greeting, &mut 0, 0.0), Ok(None));
    for body in bodies {
        client.call(&call_fields(), body.clone(), false).unwrap();
    }
    client.output(usize::MAX)
}

#[test]
fn frames_cut_at_every_byte_give_the_same_calls() {
    let sent = calls(&[b"one".to_vec(), Vec::new(), vec![7; 300]]);
    let mut whole = Served::new();
    whole.feed(&sent).unwrap();
    assert_eq!(whole.messages.len(), 3);
    for cut in 0..=sent.len() {
        let mut served = Served::new();
        served.feed(&sent[..cut]).unwrap();
        served.feed(&sent[cut..]).unwrap();
        assert_eq!((served.events, served.messages), (whole.events.clone(), whole.messages.clone()), "cut at byte {cut}");
    }
    let mut served = Served::new();
    for byte in &sent {
        served.feed(std::slice::from_ref(byte)).unwrap();
    }
    assert_eq!((served.events, served.messages), (whole.events, whole.messages), "byte by byte");
}

#[test]
fn a_call_that_ends_with_its_headers_has_no_message() {
    let mut sent = Vec::new();
    super::frame::put_headers(&mut sent, 1, true, &call_head());
    let mut served = greeted();
    served.feed(&sent).unwrap();
    assert_eq!(served.events, ["call 1 /service/Method None", "no message 1 false"]);
}

#[test]
fn padding_and_priorities_are_read_over() {
    let mut sent = Vec::new();
    let head = call_head();
    let padded = [&[3_u8][..], &[0, 0, 0, 0, 1], &head, &[0; 3]].concat();
    put_frame(&mut sent, kind::HEADERS, flag::END_HEADERS | flag::PADDED | flag::PRIORITY, 1, &padded);
    put_frame(&mut sent, kind::PRIORITY, 0, 1, &[0; 5]);
    put_frame(&mut sent, kind::DATA, flag::PADDED, 1, b"\x02\0\0\0\0\x03ab\0\0");
    put_frame(&mut sent, kind::DATA, flag::PADDED | flag::END_STREAM, 1, b"\x04c\0\0\0\0");
    let mut served = greeted();
    served.feed(&sent).unwrap();
    assert_eq!(served.messages, [(1, b"abc".to_vec())]);
}

/// Carries bytes between both ends until neither has any; answers every message with `respond`.
fn talk(client: &mut ClientConnection<Vec<u8>>, served: &mut Served, respond: impl Fn(&mut ServerConnection, u32)) -> Vec<ClientEvent> {
    let mut events = Vec::new();
    let mut answered = served.messages.len();
    loop {
        let sent = client.output(50_000);
        served.feed(&sent).unwrap();
        while answered < served.messages.len() {
            respond(&mut served.server, served.messages[answered].0);
            answered += 1;
        }
        let said = served.server.output();
        if sent.is_empty() && said.is_empty() {
            return events;
        }
        let mut at = 0;
        while let Some(event) = client.next(&said, &mut at, 0.0).unwrap() {
            events.push(event);
        }
    }
}

#[test]
fn a_status_with_its_words_and_trailers_arrives_as_it_was_sent() {
    let (mut client, mut served) = (ClientConnection::default(), Served::new());
    client.call(&call_fields(), b"x".to_vec(), true).unwrap();
    let words = "voll: 100 % Ü\n";
    let events = talk(&mut client, &mut served, |server, stream| server.fail(stream, 14, words, &[("a-bin".to_owned(), "AQI".to_owned())]));
    let [ClientEvent::Answer { stream: 1, answer }] = &events[..] else { panic!("{events:?}") };
    assert_eq!((answer.http_status, answer.grpc_status, &*answer.message), (200, Some(14), words));
    assert!(answer.trailers.contains(&(b"a-bin".to_vec(), b"AQI".to_vec())));
    assert_eq!(answer.body(), None);
    assert_eq!(client.open_calls() + served.server.open_calls(), 0);
}

#[test]
fn calls_that_a_leaving_server_has_not_touched_are_told_apart() {
    let (mut client, mut served) = (ClientConnection::default(), Served::new());
    client.call(&call_fields(), b"x".to_vec(), false).unwrap();
    served.feed(&client.output(usize::MAX)).unwrap();
    served.server.drain();
    let goaway = served.server.output();
    client.call(&call_fields(), b"y".to_vec(), false).unwrap(); // before it hears of it
    let mut at = 0;
    let mut events = Vec::new();
    while let Some(event) = client.next(&goaway, &mut at, 0.0).unwrap() {
        events.push(event);
    }
    served.server.respond(1, b"answer".to_vec()).unwrap();
    let untouched = ClientEvent::Reset { stream: 3, code: code::REFUSED_STREAM, is_untouched: true };
    assert_eq!(events, [ClientEvent::GoAway { code: code::NO_ERROR, debug: Vec::new() }, untouched]);
    let events = talk(&mut client, &mut served, |_, _| {});
    assert!(events.iter().any(|event| matches!(event, ClientEvent::Answer { stream: 1, answer } if answer.grpc_status == Some(0))));
    assert!(client.is_leaving());
    assert_eq!(client.call(&call_fields(), Vec::new(), false), None);
}

#[test]
fn an_answer_over_its_limit_is_not_read_to_its_end() {
    let (mut client, mut served) = (ClientConnection::default(), Served::new());
    client.call(&call_fields(), b"x".to_vec(), false).unwrap();
    let events = talk(&mut client, &mut served, |server, stream| server.respond(stream, vec![0; 3_000_000]).unwrap());
    assert!(matches!(&events[..], [ClientEvent::Answer { answer, .. }] if answer.is_too_long), "{} events", events.len());
    assert_eq!(served.events.last().unwrap(), "gone 1");
}

proptest! {
    #[test]
    fn messages_of_any_size_arrive_whole_through_any_windows(
        sizes in proptest::collection::vec(prop_oneof![0_usize..200, 0_usize..300_000, Just(2_500_000)], 1..5), answer in any::<Vec<u8>>(),
    ) {
        let (mut client, mut served) = (ClientConnection::default(), Served { budget_bytes: usize::MAX / 2, ..Served::new() });
        for (index, size) in sizes.iter().enumerate() {
            client.call(&call_fields(), vec![index as u8; *size], false).unwrap();
        }
        let events = talk(&mut client, &mut served, |server, stream| server.respond(stream, answer.clone()).unwrap());
        served.messages.sort();
        let received: Vec<_> = served.messages.iter().map(|(_, data)| data.clone()).collect();
        prop_assert_eq!(received, sizes.iter().enumerate().map(|(index, size)| vec![index as u8; *size]).collect::<Vec<_>>());
        prop_assert_eq!(events.len(), sizes.len());
        for event in events {
            let ClientEvent::Answer { answer: got, .. } = event else { panic!("{event:?}") };
            prop_assert_eq!(got.body(), Some((&answer[..], false)));
        }
    }

    #[test]
    fn any_bytes_after_a_greeting_never_panic_and_hold_only_what_was_granted(pieces in proptest::collection::vec(any::<Vec<u8>>(), 0..20)) {
        let mut served = greeted();
        for piece in pieces {
            if served.feed(&piece).is_err() {
                break;
            }
        }
    }

    #[test]
    fn any_frames_never_panic_and_hold_only_what_was_granted(
        frames in proptest::collection::vec((0_u8..11, any::<u8>(), 0_u32..8, any::<Vec<u8>>(), any::<bool>()), 0..40),
    ) {
        let mut served = greeted();
        let mut client = ClientConnection::<Vec<u8>>::default();
        client.call(&call_fields(), b"x".to_vec(), false).unwrap();
        let mut client_stands = true;
        for (kind, flags, stream, mut payload, is_head) in frames {
            if is_head {
                payload = call_head();
            }
            let mut bytes = Vec::new();
            put_frame(&mut bytes, kind, flags, stream, &payload);
            let mut at = 0;
            while client_stands {
                match client.next(&bytes, &mut at, 0.0) {
                    Ok(None) => break,
                    Ok(Some(_)) => {}
                    Err(_) => client_stands = false,
                }
            }
            if served.feed(&bytes).is_err() {
                break;
            }
            served.server.output();
        }
    }

    #[test]
    fn a_byte_changed_anywhere_never_panics(
        at in any::<prop::sample::Index>(), byte: u8, cut in any::<prop::sample::Index>(), body in proptest::collection::vec(any::<u8>(), 0..100),
    ) {
        let mut sent = calls(&[body.clone(), body]);
        let at = at.index(sent.len());
        sent[at] = byte;
        let cut = cut.index(sent.len());
        let mut served = Served::new();
        if served.feed(&sent[..cut]).is_ok() {
            let _ = served.feed(&sent[cut..]);
        }
    }
}
