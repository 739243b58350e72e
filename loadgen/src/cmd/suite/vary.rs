//! A scenario that varies an input over a list becomes one scenario for each value.
//!
//! `in_flight = [1, 16]` in a scenario `many` gives `many-in_flight-1` and `many-in_flight-16`; two lists give
//! every combination.

use toml::{Table, Value};

use super::plan::wrong;
use crate::scenario::UsageError;

/// Inputs that are no list may be one here.
const LISTS_MAX: usize = 1_000;

/// `file` with its lists taken apart; as it is if it has none.
pub(super) fn expanded(mut file: Table) -> Result<Table, UsageError> {
    let Some(Value::Array(scenarios)) = file.get_mut("scenario") else { return Ok(file) };
    let mut all = Vec::new();
    for scenario in std::mem::take(scenarios) {
        match scenario {
            Value::Table(scenario) => all.extend(combinations(scenario)?),
            other => all.push(other),
        }
        if all.len() > LISTS_MAX {
            let cure = format!("the lists give more than {LISTS_MAX}; write shorter ones");
            return Err(wrong("scenario", all.len(), cure));
        }
    }
    *scenarios = all;
    Ok(file)
}

fn combinations(scenario: Table) -> Result<Vec<Value>, UsageError> {
    let mut all = vec![scenario.clone()];
    for (key, values) in &scenario {
        let Value::Array(values) = values else { continue };
        if values.is_empty() {
            let cure = "nothing would be run; write at least one value, or leave it out";
            return Err(wrong("scenario", format!("{key} = []"), cure));
        }
        let with = |scenario: &Table, value: &Value| {
            let mut scenario = scenario.clone();
            scenario.insert(key.clone(), value.clone());
            if let Some(Value::String(name)) = scenario.get_mut("name") {
                name.push_str(&format!("-{key}-{}", in_a_name(value)));
            }
            scenario
        };
        all = all
            .iter()
            .flat_map(|scenario| values.iter().map(move |value| with(scenario, value)))
            .collect();
    }
    Ok(all.into_iter().map(Value::Table).collect())
}

/// What a name of a file can hold of a value.
fn in_a_name(value: &Value) -> String {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Integer(number) => number.to_string(),
        Value::Float(number) => number.to_string(),
        // Of metadata: keys and values.
        Value::Table(table) => {
            let pairs = table.iter().map(|(key, value)| format!("{key} {}", in_a_name(value)));
            pairs.collect::<Vec<_>>().join(" ")
        }
        // Whatever else stands there is refused by its key.
        other => other.type_str().to_owned(),
    };
    let text = text.replace('%', " pct ");
    let words: Vec<_> = text.split_whitespace().collect();
    let plain = |letter: char| {
        if letter.is_ascii_alphanumeric() || letter == '-' { letter } else { '_' }
    };
    words.join("-").chars().map(plain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<String> {
        let file = expanded(toml::from_str(text).unwrap()).unwrap();
        let scenarios = file["scenario"].as_array().unwrap();
        scenarios.iter().map(|it| it["name"].as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn lists_give_every_combination() {
        let text = "[[scenario]]\nname = \"a\"\nin_flight = [1, 16]\npayload = [\"8B\", \"1.5 KB\"]\n\
                    [[scenario]]\nname = \"b\"\nin_flight = 4\n";
        let expected = [
            "a-in_flight-1-payload-8B",
            "a-in_flight-1-payload-1_5-KB",
            "a-in_flight-16-payload-8B",
            "a-in_flight-16-payload-1_5-KB",
            "b",
        ];
        assert_eq!(names(text), expected);
        let headers = "[[scenario]]\nname = \"a\"\nheaders = [{}, { x-id = \"7\", y = \"b/c\" }]\n";
        assert_eq!(names(headers), ["a-headers-", "a-headers-x-id-7-y-b_c"]);
        let shares = "[[scenario]]\nname = \"a\"\nrate = [\"50 %\", \"90% of tonic\"]\n";
        assert_eq!(names(shares), ["a-rate-50-pct", "a-rate-90-pct-of-tonic"]);
    }

    #[test]
    fn what_has_no_lists_stays_as_it_is() {
        let file: Table = toml::from_str("x = [1]\n[[scenario]]\nname = \"a\"\n").unwrap();
        assert_eq!(expanded(file.clone()).unwrap(), file);
    }

    #[test]
    fn an_empty_list_is_refused() {
        let file = toml::from_str("[[scenario]]\nname = \"a\"\nstreams = []\n").unwrap();
        assert_eq!(expanded(file).unwrap_err().value, "streams = []");
    }
}
