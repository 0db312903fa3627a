//! Regular expressions of `prio_args`: POSIX extended, unanchored, case-sensitive, as in
//! multipath.conf(5).
//!
//! A pattern becomes a list of steps that is run over the text with all its states at once, so that no
//! pattern takes more time than its length times the text's.

use std::iter::Peekable;
use std::str::Chars;

/// Longest program; repetitions are written out.
const STEPS_MAX: usize = 4096;
/// Largest count of `{m,n}`, as RE_DUP_MAX.
const REPEAT_MAX: u32 = 255;
/// Deepest nesting of parentheses.
const DEPTH_MAX: u32 = 32;

/// A compiled regular expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    steps: Vec<Step>,
}

/// Characters that match in one place.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Set {
    is_negated: bool,
    ranges: Vec<(char, char)>,
}

impl Set {
    fn one(c: char) -> Set {
        Set {
            is_negated: false,
            ranges: vec![(c, c)],
        }
    }

    fn any() -> Set {
        Set {
            is_negated: true,
            ranges: Vec::new(),
        }
    }

    fn has(&self, c: char) -> bool {
        let is_in = self
            .ranges
            .iter()
            .any(|&(from, to)| (from..=to).contains(&c));
        is_in != self.is_negated
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// Takes a character.
    Take(Set),
    /// Goes on at both places.
    Fork(usize, usize),
    Start,
    End,
    Found,
}

enum Node {
    Take(Set),
    Start,
    End,
    Sequence(Vec<Node>),
    Choice(Vec<Node>),
    Repeat(Box<Node>, u32, Option<u32>),
}

impl Pattern {
    /// Compiles `text`.
    ///
    /// # Errors
    /// What is wrong with it, as the end of a sentence.
    pub fn new(text: &str) -> Result<Pattern, String> {
        let mut parser = Parser {
            rest: text.chars().peekable(),
            depth: 0,
        };
        let node = parser.choice()?;
        if parser.rest.peek().is_some() {
            return Err("a parenthesis is closed and was not opened".into());
        }
        let mut steps = Vec::new();
        emit(&node, &mut steps)?;
        steps.push(Step::Found);
        Ok(Pattern { steps })
    }

    /// Whether it occurs anywhere in `text`.
    pub fn is_in(&self, text: &str) -> bool {
        let chars: Vec<char> = text.chars().collect();
        let mut states = vec![false; self.steps.len()];
        for at in 0..=chars.len() {
            // It may begin at any place.
            let is_found = self.enter(0, &mut states, at, chars.len());
            if is_found || states[self.steps.len() - 1] {
                return true;
            }
            let Some(&c) = chars.get(at) else { break };
            let mut next = vec![false; self.steps.len()];
            for (n, _) in states.iter().enumerate().filter(|(_, &is_on)| is_on) {
                if matches!(&self.steps[n], Step::Take(set) if set.has(c))
                    && self.enter(n + 1, &mut next, at + 1, chars.len())
                {
                    return true;
                }
            }
            states = next;
        }
        false
    }

    /// Turns on step `first` and all that follow without taking a character; whether the end is one.
    fn enter(&self, first: usize, states: &mut [bool], at: usize, end: usize) -> bool {
        let mut open = vec![first];
        while let Some(n) = open.pop() {
            if std::mem::replace(&mut states[n], true) {
                continue;
            }
            match &self.steps[n] {
                Step::Take(_) => {}
                Step::Fork(a, b) => open.extend([*a, *b]),
                Step::Start if at == 0 => open.push(n + 1),
                Step::End if at == end => open.push(n + 1),
                Step::Start | Step::End => {}
                Step::Found => return true,
            }
        }
        false
    }
}

/// Writes the steps of `node`.
fn emit(node: &Node, steps: &mut Vec<Step>) -> Result<(), String> {
    if steps.len() > STEPS_MAX {
        return Err("it is too long when its repetitions are written out".into());
    }
    match node {
        Node::Take(set) => steps.push(Step::Take(set.clone())),
        Node::Start => steps.push(Step::Start),
        Node::End => steps.push(Step::End),
        Node::Sequence(nodes) => {
            for node in nodes {
                emit(node, steps)?;
            }
        }
        Node::Choice(nodes) => {
            let mut ends = Vec::new();
            for (n, node) in nodes.iter().enumerate() {
                let fork = steps.len();
                let is_last = n + 1 == nodes.len();
                if !is_last {
                    steps.push(Step::Fork(fork + 1, 0));
                }
                emit(node, steps)?;
                if !is_last {
                    ends.push(steps.len());
                    steps.push(Step::Fork(0, 0));
                    let next = steps.len();
                    steps[fork] = Step::Fork(fork + 1, next);
                }
            }
            let after = steps.len();
            for end in ends {
                steps[end] = Step::Fork(after, after);
            }
        }
        Node::Repeat(node, least, most) => {
            for _ in 0..*least {
                emit(node, steps)?;
            }
            match most {
                None => {
                    let fork = steps.len();
                    steps.push(Step::Fork(fork + 1, 0));
                    emit(node, steps)?;
                    steps.push(Step::Fork(fork, fork));
                    let after = steps.len();
                    steps[fork] = Step::Fork(fork + 1, after);
                }
                Some(most) => {
                    let mut forks = Vec::new();
                    for _ in *least..*most {
                        forks.push(steps.len());
                        steps.push(Step::Fork(0, 0));
                        emit(node, steps)?;
                    }
                    let after = steps.len();
                    for fork in forks {
                        steps[fork] = Step::Fork(fork + 1, after);
                    }
                }
            }
        }
    }
    Ok(())
}

struct Parser<'a> {
    rest: Peekable<Chars<'a>>,
    depth: u32,
}

impl Parser<'_> {
    fn choice(&mut self) -> Result<Node, String> {
        let mut nodes = vec![self.sequence()?];
        while self.rest.next_if_eq(&'|').is_some() {
            nodes.push(self.sequence()?);
        }
        Ok(Node::Choice(nodes))
    }

    fn sequence(&mut self) -> Result<Node, String> {
        let mut nodes = Vec::new();
        while let Some(&c) = self.rest.peek() {
            if matches!(c, '|' | ')') {
                break;
            }
            let one = self.one()?;
            nodes.push(self.repeated(one)?);
        }
        Ok(Node::Sequence(nodes))
    }

    fn one(&mut self) -> Result<Node, String> {
        match self.rest.next() {
            Some('^') => Ok(Node::Start),
            Some('$') => Ok(Node::End),
            Some('.') => Ok(Node::Take(Set::any())),
            Some('[') => self.bracket().map(Node::Take),
            Some('(') => {
                self.depth += 1;
                if self.depth > DEPTH_MAX {
                    return Err("its parentheses are nested too deeply".into());
                }
                let node = self.choice()?;
                self.depth -= 1;
                match self.rest.next() {
                    Some(')') => Ok(node),
                    _ => Err("a parenthesis is not closed".into()),
                }
            }
            Some('\\') => match self.rest.next() {
                Some(c) if !c.is_alphanumeric() => Ok(Node::Take(Set::one(c))),
                Some(c) => Err(format!("\\{c} is not of POSIX")),
                None => Err("it ends with a backslash".into()),
            },
            Some(c @ ('*' | '+' | '?' | '{')) => Err(format!("{c:?} has nothing to repeat")),
            Some(c) => Ok(Node::Take(Set::one(c))),
            None => Err("it ends too early".into()),
        }
    }

    fn repeated(&mut self, mut node: Node) -> Result<Node, String> {
        loop {
            let (least, most) = match self.rest.peek() {
                Some('*') => (0, None),
                Some('+') => (1, None),
                Some('?') => (0, Some(1)),
                Some('{') => {
                    self.rest.next();
                    let counts = self.counts()?;
                    node = Node::Repeat(Box::new(node), counts.0, counts.1);
                    continue;
                }
                _ => return Ok(node),
            };
            self.rest.next();
            node = Node::Repeat(Box::new(node), least, most);
        }
    }

    /// What stands between braces.
    fn counts(&mut self) -> Result<(u32, Option<u32>), String> {
        let mut text = String::new();
        loop {
            match self.rest.next() {
                Some('}') => break,
                Some(c) => text.push(c),
                None => return Err("a brace is not closed".into()),
            }
        }
        let number = |text: &str| match text.parse::<u32>() {
            Ok(n) if n <= REPEAT_MAX => Ok(n),
            _ => Err(format!(
                "a count of repetitions is 0 to {REPEAT_MAX}, not {text:?}"
            )),
        };
        match text.split_once(',') {
            None => number(&text).map(|n| (n, Some(n))),
            Some((least, "")) => Ok((number(least)?, None)),
            Some((least, most)) => {
                let (least, most) = (number(least)?, number(most)?);
                if most < least {
                    return Err(format!("{{{text}}} counts downwards"));
                }
                Ok((least, Some(most)))
            }
        }
    }

    /// What stands between brackets.
    fn bracket(&mut self) -> Result<Set, String> {
        let open = || "a bracket is not closed".to_string();
        let is_negated = self.rest.next_if_eq(&'^').is_some();
        let mut ranges = Vec::new();
        let mut is_first = true;
        loop {
            let c = self.rest.next().ok_or_else(open)?;
            if c == ']' && !is_first {
                return Ok(Set { is_negated, ranges });
            }
            is_first = false;
            if c == '[' && self.rest.next_if_eq(&':').is_some() {
                ranges.extend(self.class()?);
                continue;
            }
            let mut ahead = self.rest.clone();
            let is_range = ahead.next() == Some('-') && ahead.next().is_some_and(|c| c != ']');
            if !is_range {
                ranges.push((c, c));
                continue;
            }
            self.rest.next();
            let to = self.rest.next().ok_or_else(open)?;
            if to < c {
                return Err(format!("the range {c}-{to} is empty"));
            }
            ranges.push((c, to));
        }
    }

    /// `[:NAME:]`, behind its first two characters.
    fn class(&mut self) -> Result<Vec<(char, char)>, String> {
        let mut name = String::new();
        while let Some(c) = self.rest.next_if(char::is_ascii_lowercase) {
            name.push(c);
        }
        if (self.rest.next(), self.rest.next()) != (Some(':'), Some(']')) {
            return Err("a class of characters is not closed".into());
        }
        let ranges: &[(char, char)] = match name.as_str() {
            "digit" => &[('0', '9')],
            "lower" => &[('a', 'z')],
            "upper" => &[('A', 'Z')],
            "alpha" => &[('a', 'z'), ('A', 'Z')],
            "alnum" => &[('a', 'z'), ('A', 'Z'), ('0', '9')],
            "xdigit" => &[('0', '9'), ('a', 'f'), ('A', 'F')],
            "punct" => &[('!', '/'), (':', '@'), ('[', '`'), ('{', '~')],
            "blank" => &[(' ', ' '), ('\t', '\t')],
            "space" => &[(' ', ' '), ('\t', '\r')],
            _ => return Err(format!("there is no class of characters {name:?}")),
        };
        Ok(ranges.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn is_in(pattern: &str, text: &str) -> bool {
        Pattern::new(pattern).expect(pattern).is_in(text)
    }

    #[test]
    fn what_posix_says() {
        for (pattern, yes, no) in [
            ("sd.e", "/dev/sdae", "sde"),
            ("^10\\.3\\.", "10.3.1.1:3260", "110.3.1.1"),
            (":3260$", "10.3.1.1:3260", "10.3.1.1:32601"),
            ("10\\.(3|4)\\.1", "10.4.1.1", "10.5.1.1"),
            ("^ab*c+d?$", "abbbcc", "abd"),
            ("^[^a-c[:digit:]-]+$", "xyz", "x-z"),
            ("[]x]", "a]b", "ab"),
            ("^(ab){2,3}$", "ababab", "abababab"),
            ("^a{2,}$", "aaaa", "a"),
            ("^a{3}$", "aaa", "aa"),
            ("^(|x)y", "y", "zy"),
            ("(a*)*b", "aaab", "aaaa"),
        ] {
            assert!(is_in(pattern, yes), "{pattern} {yes}");
            assert!(!is_in(pattern, no), "{pattern} {no}");
        }
        assert!(is_in("", "anything"));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for pattern in [
            "(", ")", "[a", "a{2", "a{3,1}", "a{999}", "*", "\\", "\\d", "[z-a]", "[[:no:]]",
        ] {
            assert!(Pattern::new(pattern).is_err(), "{pattern}");
        }
        assert!(Pattern::new("((((a{255}){255}){255}){255})").is_err());
        assert!(Pattern::new(&"(".repeat(100_000)).is_err());
    }

    proptest! {
        #[test]
        fn a_text_without_operators_is_found_where_it_stands(
            text in "[a-z0-9:]{0,12}", needle in "[a-z0-9:]{0,3}",
        ) {
            prop_assert_eq!(is_in(&needle, &text), text.contains(&needle));
        }

        #[test]
        fn never_panics(pattern in "[a-c0-2.*+?(){},|^$\\[\\]:\\\\-]{0,16}", text in "[a-c]{0,16}") {
            if let Ok(pattern) = Pattern::new(&pattern) {
                let _ = pattern.is_in(&text);
            }
        }
    }
}
