//! `deme plan`: a plan from what earlier results leave open, and one from a language model behind a server that
//! speaks the protocol, streaming and failing.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::JoinHandle;

use crate::support::{self, deme, fail_with, succeed, tiny_recipe};
use serde_json::{Value, json};

fn plan(recipe: &Path, arguments: &[&str]) -> Command {
    let mut command = deme();
    command.arg("plan").arg(recipe).args(arguments);
    command
}

fn stdout(command: &mut Command) -> String {
    String::from_utf8(succeed(command).stdout).unwrap()
}

#[test]
fn results_of_ablations_and_runs_decide_what_is_planned_and_the_plan_can_be_carried_out() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = tiny_recipe(folder.path());
    let results = folder.path().join("results");

    // An ablation of the weights at two seeds, and a run.
    let mut ablate = deme();
    ablate.arg("ablate").arg("merging-weights").arg("--recipe").arg(&recipe).arg("--quiet");
    succeed(ablate.args(["--seeds", "2", "--out"]).arg(&results));
    succeed(&mut support::run_tiny(&recipe, &results, &[]));

    let results_argument = results.to_str().unwrap();
    let mut command = plan(&recipe, &["--results", results_argument]);
    let output = succeed(&mut command);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("evidence for tiny: 1 ablations, 1 runs"), "{said}");
    assert!(said.contains("weights (2 seeds): fd_tiny_clip: uniform 1/N"), "{said}");
    assert!(said.contains("without evidence: ranges, techniques"), "{said}");
    let text = String::from_utf8(output.stdout).unwrap();
    let parts = |text: &str| -> Vec<String> {
        let lines = text.lines().filter_map(|line| line.strip_prefix("part = "));
        lines.map(|part| part.trim_matches('"').to_owned()).collect()
    };
    assert_eq!(parts(&text).len(), 4, "{text}");
    assert!(!parts(&text).contains(&"weights".to_owned()), "{text}");
    assert!(text.contains("metrics.json measured merged"), "no numbers in {text}");
    // Without results the weights come first.
    let text = stdout(&mut plan(&recipe, &["--quiet", "--most", "2"]));
    assert_eq!(parts(&text)[0], "weights");

    for (format, file) in [("toml", "a.toml"), ("jsonl", "a.jsonl"), ("markdown", "a.md")] {
        let path = folder.path().join(file);
        let to = path.to_str().unwrap();
        // 2 and 4 ranges: the whole grid of 8 experts would be too large.
        let arguments = ["--results", results_argument, "--quiet", "--format", format, "--out", to];
        assert!(stdout(&mut plan(&recipe, &arguments)).is_empty());
        let mut ablate = deme();
        ablate.arg("ablate").arg(&path).arg("--recipe").arg(&recipe).arg("--dry-run");
        let said = stdout(ablate.arg("--out").arg(folder.path().join("out")));
        assert!(said.contains("REPLACE ranges: the number of timestep ranges, N"), "{said}");
    }
}

#[test]
fn a_folder_of_other_things_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = tiny_recipe(folder.path());
    std::fs::write(folder.path().join("metrics.json"), "[1, 2]").unwrap();
    let results = folder.path().to_str().unwrap();
    let said = fail_with(&mut plan(&recipe, &["--results", results]), 2);
    assert!(said.contains("metrics.json is not read as results"), "{said}");
    let said = fail_with(&mut plan(&recipe, &["--results", "no/such/folder"]), 2);
    assert!(said.contains("no/such/folder"), "{said}");
    let said = fail_with(&mut plan(&recipe, &["--llm", "http://localhost:1"]), 2);
    assert!(said.contains("--model"), "{said}");
}

/// A server that answers one request with these bytes, in these pieces, and gives back what it was asked.
struct Server {
    url: String,
    thread: JoinHandle<(Vec<String>, Value)>,
}

impl Server {
    fn answering(pieces: Vec<Vec<u8>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let thread = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let request = read_request(&stream);
            let mut stream = stream;
            for piece in pieces {
                stream.write_all(&piece).unwrap();
                stream.flush().unwrap();
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
            request
        });
        Self { url, thread }
    }

    /// The request's line and headers, and its body.
    fn request(self) -> (Vec<String>, Value) {
        self.thread.join().unwrap()
    }
}

fn read_request(stream: &TcpStream) -> (Vec<String>, Value) {
    let mut reader = BufReader::new(stream);
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        match line.trim_end() {
            "" => break,
            line => head.push(line.to_lowercase()),
        }
    }
    let length = head.iter().find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.unwrap().parse().unwrap()];
    reader.read_exact(&mut body).unwrap();
    (head, serde_json::from_slice(&body).unwrap())
}

const STREAM_HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\nconnection: close\r\n\r\n";

/// A streamed answer, an event for every few characters, cut into packets at odd places.
fn streamed(answer: &str, ending: &str) -> Vec<Vec<u8>> {
    let mut bytes = STREAM_HEAD.as_bytes().to_vec();
    let characters: Vec<char> = answer.chars().collect();
    for piece in characters.chunks(7) {
        let piece: String = piece.iter().collect();
        let event = json!({ "choices": [{ "index": 0, "delta": { "content": piece } }] });
        bytes.extend(format!("data: {event}\n\n").bytes());
    }
    bytes.extend(ending.bytes());
    bytes.chunks(97).map(<[u8]>::to_vec).collect()
}

fn in_one_piece(status: &str, body: &Value) -> Vec<Vec<u8>> {
    let body = body.to_string();
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    vec![format!("{head}{body}").into_bytes()]
}

const DONE: &str = "data: [DONE]\n\n";

const ANSWER: &str = concat!(
    r#"{"name": "Sans EMA – é", "ablated_part": "ema", "action": "REMOVE", "metrics": ["fd_tiny_clip"], "reason": "0.3 ± 0.1"}"#,
    "\n",
    r#"{"name": "p", "ablated_part": "probability", "action": "REPLACE", "replacement": [0, "0.5"], "metrics": ["FD"]}"#,
    "\n"
);

struct Place {
    _folder: tempfile::TempDir,
    recipe: PathBuf,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let recipe = tiny_recipe(folder.path());
        Self { _folder: folder, recipe }
    }

    fn ask(&self, url: &str) -> Command {
        let arguments = ["--llm", url, "--model", "small-one", "--llm-key-env", "DEME_TEST_KEY"];
        let mut command = plan(&self.recipe, &arguments);
        command.env("DEME_TEST_KEY", "secret");
        command
    }

    fn refuses(&self, pieces: Vec<Vec<u8>>, words: &[&str]) {
        let server = Server::answering(pieces);
        let said = fail_with(&mut self.ask(&server.url), 1);
        for word in words {
            assert!(said.contains(word), "no {word:?} in: {said}");
        }
        server.request();
    }
}

#[test]
fn a_streaming_model_is_asked_with_recipe_parts_and_key() {
    let place = Place::new();
    let server = Server::answering(streamed(ANSWER, DONE));
    let mut command = place.ask(&server.url);
    let text = stdout(command.args(["--format", "toml"]));
    assert!(
        text.contains("name = \"Sans EMA – é\"") && text.contains("reason = \"0.3 ± 0.1\""),
        "{text}"
    );
    assert!(text.contains("replacement = [0, \"0.5\"]"), "{text}");

    let (head, body) = server.request();
    assert_eq!(head[0], "post /v1/chat/completions http/1.1");
    assert!(head.contains(&"authorization: bearer secret".to_owned()), "{head:?}");
    assert_eq!((&body["model"], &body["stream"]), (&json!("small-one"), &json!(true)));
    let question = body["messages"][1]["content"].as_str().unwrap();
    for word in [
        "[decouple.finetune]",
        "- consistency_loss: ",
        "fd_tiny_clip",
        "REMOVE leaves no projection",
    ] {
        assert!(question.contains(word), "no {word:?} in {question}");
    }
}

#[test]
fn an_endpoint_that_does_not_stream_is_heard_too() {
    let place = Place::new();
    let body = json!({ "choices": [{ "message": { "content": format!("```jsonl\n{ANSWER}```") }, "finish_reason": "stop" }] });
    let server = Server::answering(in_one_piece("200 OK", &body));
    let text = stdout(place.ask(&server.url).arg("--quiet"));
    assert_eq!(text.matches("[[ablation]]").count(), 2, "{text}");
    server.request();
}

#[test]
fn endpoints_that_fail_are_named_with_what_they_said() {
    let place = Place::new();
    let refusal = json!({ "error": { "message": "wrong key" } });
    place.refuses(
        in_one_piece("401 Unauthorized", &refusal),
        &["gave no answer: status 401: wrong key", "DEME_TEST_KEY"],
    );
    place.refuses(streamed(ANSWER, ""), &["the answer broke off after"]);
    let overloaded = "data: {\"error\": {\"message\": \"overloaded\"}}\n\n";
    place.refuses(streamed("", overloaded), &["gave no answer: overloaded"]);
    place.refuses(streamed("", DONE), &["the answer is empty"]);
    let limit =
        "data: {\"choices\": [{\"delta\": {}, \"finish_reason\": \"length\"}]}\n\ndata: [DONE]\n\n";
    place.refuses(streamed(ANSWER, limit), &["cut off by the model's limit"]);
    // Nobody listens at a port that was just given back.
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let said = fail_with(&mut place.ask(&format!("http://{nobody}/v1")), 1);
    assert!(said.contains("gave no answer"), "{said}");
}

#[test]
fn an_answer_that_is_no_plan_is_shown() {
    let place = Place::new();
    place.refuses(
        streamed("I would rather write a poem.", DONE),
        &["no plan for this recipe", "holds no ablation", "I would rather write a poem."],
    );
    let unknown = ANSWER.replace("\"ema\"", "\"the flavour\"");
    place
        .refuses(streamed(&unknown, DONE), &["no part of the recipe is “the flavour”", "Sans EMA"]);
    let impossible = ANSWER.replace("\"0.5\"", "\"1.5\"");
    place.refuses(streamed(&impossible, DONE), &["variant “p = 1.5”", "from 0 to 1"]);
    let metric = ANSWER.replace("\"FD\"", "\"FID\"");
    place.refuses(streamed(&metric, DONE), &["FID cannot be measured"]);
}
