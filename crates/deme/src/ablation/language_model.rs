//! A plan from a language model behind an OpenAI-compatible endpoint (`/chat/completions`, streaming).
//!
//! The model gets the recipe, the table of parts and what is known; its answer is checked as any plan is. Nothing
//! else is sent, and nothing is run on its word.

use std::io::{BufRead, BufReader, Read};
use std::time::Duration;

use serde_json::{Value, json};

use super::AblationError;
use super::plan::AblationPlan;

/// A model that answers.
pub struct Endpoint<'a> {
    /// The base address, as in `http://localhost:8000/v1`, or that of the chat completions themselves.
    pub url: &'a str,
    /// The model's name there.
    pub model: &'a str,
    /// The key, if one is needed.
    pub key: Option<String>,
    /// The environment variable that the key is taken from, for messages.
    pub key_variable: &'a str,
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Until a model begins to answer: a large one on a slow machine thinks for minutes.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(600);
/// An answer of this length is no plan.
const MOST_BYTES: u64 = 4 << 20;

impl Endpoint<'_> {
    /// Asks, and hands each piece of the answer to `heard` as it comes.
    ///
    /// # Errors
    /// [`AblationError::NoAnswer`] when the endpoint cannot be reached, refuses, breaks off or says nothing.
    pub fn ask(
        &self,
        instructions: &str,
        question: &str,
        heard: &mut dyn FnMut(&str),
    ) -> Result<String, AblationError> {
        let body = json!({
            "model": self.model,
            "stream": true,
            "messages": [
                { "role": "system", "content": instructions },
                { "role": "user", "content": question },
            ],
        });
        let config = ureq::Agent::config_builder()
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(ANSWER_TIMEOUT))
            .http_status_as_error(false)
            .build();
        let mut request = ureq::Agent::new_with_config(config)
            .post(self.address())
            .header("content-type", "application/json")
            .header("accept", "text/event-stream");
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let response = request.send(body.to_string()).map_err(|e| self.silent(e.to_string()))?;
        let status = response.status();
        let content_type = response.headers().get("content-type");
        let content_type = content_type.and_then(|value| value.to_str().ok()).unwrap_or_default();
        let is_stream = content_type.contains("text/event-stream");
        let mut reader = BufReader::new(response.into_body().into_reader().take(MOST_BYTES));
        let answer = if status.is_success() && is_stream {
            streamed(&mut reader, heard)
        } else {
            whole(&mut reader, status.as_u16()).inspect(|answer| heard(answer))
        };
        match answer {
            Ok(answer) if answer.trim().is_empty() => {
                Err(self.silent("the answer is empty".into()))
            }
            Ok(answer) => Ok(answer),
            Err(reason) => Err(self.silent(reason)),
        }
    }

    fn address(&self) -> String {
        let url = self.url.trim_end_matches('/');
        match url.ends_with("/chat/completions") {
            true => url.to_owned(),
            false => format!("{url}/chat/completions"),
        }
    }

    fn silent(&self, reason: String) -> AblationError {
        AblationError::NoAnswer {
            url: self.address(),
            reason,
            key_variable: self.key_variable.to_owned(),
        }
    }
}

/// Server-sent events, each a piece of the answer, until `[DONE]`.
fn streamed(reader: &mut impl BufRead, heard: &mut dyn FnMut(&str)) -> Result<String, String> {
    let mut answer = String::new();
    let mut finish: Option<String> = None;
    let mut done = false;
    let mut line = Vec::new();
    while !done {
        line.clear();
        let read = reader.read_until(b'\n', &mut line).map_err(|error| {
            format!("the answer broke off after {} bytes: {error}", answer.len())
        })?;
        if read == 0 {
            break;
        }
        let text = std::str::from_utf8(&line).map_err(|_| "the answer is no UTF-8".to_owned())?;
        // Comments, event names and empty lines carry nothing.
        let Some(data) = text.trim_end().strip_prefix("data:").map(str::trim) else { continue };
        if data == "[DONE]" {
            done = true;
            continue;
        }
        let event: Value = serde_json::from_str(data)
            .map_err(|error| format!("an event is no JSON ({error}): {}", shortened(data)))?;
        if let Some(message) = error_of(&event) {
            return Err(message);
        }
        let choice = &event["choices"][0];
        if let Some(piece) = choice["delta"]["content"].as_str() {
            answer.push_str(piece);
            heard(piece);
        }
        finish = choice["finish_reason"].as_str().map(str::to_owned).or(finish);
    }
    match finish.as_deref() {
        Some("length") => Err(cut_by_length(&answer)),
        None if !done => Err(format!("the answer broke off after {} bytes", answer.len())),
        _ => Ok(answer),
    }
}

/// An answer in one piece, from an endpoint that does not stream; or its refusal.
fn whole(reader: &mut impl Read, status: u16) -> Result<String, String> {
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).map_err(|error| format!("the answer broke off: {error}"))?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let body: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
    if !(200..300).contains(&status) {
        let said = error_of(&body).unwrap_or_else(|| shortened(&text));
        return Err(format!("status {status}: {said}"));
    }
    if let Some(message) = error_of(&body) {
        return Err(message);
    }
    let choice = &body["choices"][0];
    match (choice["message"]["content"].as_str(), choice["finish_reason"].as_str()) {
        (Some(answer), Some("length")) => Err(cut_by_length(answer)),
        (Some(answer), _) => Ok(answer.to_owned()),
        (None, _) => Err(format!("this is no chat completion: {}", shortened(&text))),
    }
}

fn error_of(body: &Value) -> Option<String> {
    let error = body.get("error").filter(|error| !error.is_null())?;
    let message = error["message"].as_str().or(error.as_str());
    Some(message.map_or_else(|| error.to_string(), str::to_owned))
}

fn cut_by_length(answer: &str) -> String {
    format!("the answer was cut off by the model's limit after {} bytes", answer.len())
}

fn shortened(text: &str) -> String {
    const MOST: usize = 300;
    let text = text.trim();
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None if text.is_empty() => "an empty answer".to_owned(),
        None => text.to_owned(),
    }
}

/// The plan in an answer: one JSON object a line, in a fence or between other text; or one of the other forms.
///
/// # Errors
/// Those of the forms.
pub fn plan_in(name: &str, answer: &str) -> Result<AblationPlan, AblationError> {
    // What a model thinks aloud is not its answer.
    let answer = answer.rsplit_once("</think>").map_or(answer, |(_, answer)| answer);
    let fenced = fenced(answer);
    let text = if fenced.is_empty() { answer.to_owned() } else { fenced };
    let is_object = |line: &&str| line.trim_start().starts_with('{');
    let objects: Vec<&str> = text.lines().filter(is_object).collect();
    let read =
        |ending: &str, text: &str| AblationPlan::read(&format!("{name}.{ending}"), text, None);
    if text.contains("[[ablation]]") {
        return read("toml", &text);
    }
    if text.trim_start().starts_with('[') || (objects.len() == 1 && text.trim_end().ends_with('}'))
    {
        // A list of objects, or one over several lines.
        if let Ok(plan) = read("json", text.trim()) {
            return Ok(plan);
        }
    }
    if objects.is_empty() {
        return read("md", &text);
    }
    read("jsonl", &objects.join("\n"))
}

/// What stands between fences.
fn fenced(answer: &str) -> String {
    let mut inside = false;
    let mut text = String::new();
    for line in answer.lines() {
        if line.trim_start().starts_with("```") {
            inside = !inside;
        } else if inside {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const LINE: &str =
        r#"{"name": "A", "ablated_part": "ema", "action": "REMOVE", "metrics": ["FID"]}"#;

    #[test]
    fn a_plan_is_found_in_an_answer() {
        let other = LINE.replace("\"A\"", "\"B\"");
        let toml = "[[ablation]]\nname = \"A\"\npart = \"ema\"\naction = \"REMOVE\"\n";
        let markdown = "### A\n- **Ablated Part**: ema\n- **Action**: REMOVE\n";
        for (answer, entries) in [
            (format!("{LINE}\n{other}"), 2),
            (format!("Here it is:\n{LINE}\nGood luck."), 1),
            (format!("<think>\n{{a thought}}\n</think>\n```jsonl\n{LINE}\n{other}\n```\nDone."), 2),
            (format!("```json\n[{LINE},\n{other}]\n```"), 2),
            (LINE.replace(", ", ",\n"), 1),
            (toml.to_owned(), 1),
            (markdown.to_owned(), 1),
        ] {
            assert_eq!(plan_in("answer", &answer).unwrap().entries.len(), entries, "{answer}");
        }
        for answer in ["I cannot do that.", "{\"name\": ", ""] {
            assert!(plan_in("answer", answer).is_err(), "{answer}");
        }
    }

    #[test]
    fn a_stream_is_put_together() {
        let mut heard = Vec::new();
        let stream = ": a comment\n\ndata: {\"choices\":[{\"delta\":{\"role\":\"assistant\"}}]}\n\n\
                      data: {\"choices\":[{\"delta\":{\"content\":\"one \"}}]}\r\n\r\n\
                      data:{\"choices\":[{\"delta\":{\"content\":\"two\"},\"finish_reason\":null}]}\n\n\
                      data: {\"choices\":[],\"usage\":{}}\n\ndata: [DONE]\n\n";
        let answer = streamed(&mut stream.as_bytes(), &mut |piece| heard.push(piece.to_owned()));
        assert_eq!(answer.unwrap(), "one two");
        assert_eq!(heard, ["one ", "two"]);
    }

    #[test]
    fn a_stream_that_breaks_off_or_fails_is_no_answer() {
        let piece = "data: {\"choices\":[{\"delta\":{\"content\":\"one\"}}]}\n\n";
        for (stream, word) in [
            (piece.to_owned(), "broke off after 3 bytes"),
            (
                format!(
                    "{piece}data: {{\"choices\":[{{\"delta\":{{}},\"finish_reason\":\"length\"}}]}}\n"
                ),
                "limit",
            ),
            (format!("{piece}data: {{\"error\":{{\"message\":\"overloaded\"}}}}\n"), "overloaded"),
            (format!("{piece}data: nonsense\n"), "nonsense"),
        ] {
            let refused = streamed(&mut stream.as_bytes(), &mut |_| {}).unwrap_err();
            assert!(refused.contains(word), "{refused}");
        }
    }
}
