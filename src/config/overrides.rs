//! `--set key=value`: which key is meant, and what the value is.
//!
//! Keys are dotted. An element of an array of tables is addressed by its index, `stage[1].steps`,
//! or by what it calls itself: `rl.steps` is the stage whose `name`, or else `kind`, is `rl`,
//! unless the top level has a key of that name. A value is read as TOML where that is possible
//! and is a string otherwise, so `name=first` needs no quotes that a shell would take away.

use super::problem::{Fault, Place, Problem};
use super::value::{Content, Entry, Node, Origin, PathText, Step, parse_path};

/// Puts the override `text`, which is the `number`-th, into `root`.
pub(super) fn apply(root: &mut Node, text: &str, number: usize) -> Result<(), Box<Problem>> {
    let refuse = |key: String, fault: Fault| {
        Box::new(Problem::new(Place::Override { text: text.to_owned() }, key, fault))
    };
    let Some((key, value)) = split_at_equals(text) else {
        let fault = Fault::new("", format!("`{text}` gives no value"));
        return Err(refuse(String::new(), fault.expected("key=value")));
    };
    let path = parse_path(key).map_err(|why| {
        let fault = Fault::new("", format!("cannot read the key `{key}`: {why}"));
        refuse(String::new(), fault.hint("keys look like rl.steps, stage[1].steps or model.layers"))
    })?;
    let value = match Node::parse_value(value, number) {
        Some(node) => node,
        None if value.trim_start().starts_with(['[', '{', '"', '\'']) => {
            let fault = Fault::new("", format!("cannot read the value `{value}`"));
            return Err(refuse(key.to_owned(), fault.expected("a TOML value, such as [1, 2]")));
        }
        None => Node::new(Content::String(value.to_owned()), Origin::Override(number)),
    };
    let path = by_name_at_the_top(root, path).map_err(|fault| refuse(key.to_owned(), fault))?;
    assign(root, &path, value, number).map_err(|fault| refuse(key.to_owned(), fault))
}

/// What `rl` may stand for at the start of a key: the names and kinds of all elements of the
/// arrays of tables at the top.
pub(super) fn labels(root: &Node) -> Vec<String> {
    let mut labels = Vec::new();
    for entry in root.entries() {
        let Content::List(nodes) = &entry.node.content else { continue };
        for label in nodes.iter().flat_map(|node| [node.text("name"), node.text("kind")]).flatten()
        {
            if !labels.iter().any(|known| known == label) {
                labels.push(label.to_owned());
            }
        }
    }
    labels
}

fn split_at_equals(text: &str) -> Option<(&str, &str)> {
    let mut quote = None;
    for (position, letter) in text.char_indices() {
        match (quote, letter) {
            (None, '=') => return Some((&text[..position], &text[position + 1..])),
            (None, '"' | '\'') => quote = Some(letter),
            (Some(open), letter) if letter == open => quote = None,
            _ => {}
        }
    }
    None
}

/// Replaces a leading name that the top level does not have by the element that bears it.
fn by_name_at_the_top(root: &Node, path: Vec<Step>) -> Result<Vec<Step>, Fault> {
    let Some(Step::Key(name)) = path.first() else { return Ok(path) };
    if root.entry(name).is_some() {
        return Ok(path);
    }
    let lists = root.entries().iter().filter_map(|entry| match &entry.node.content {
        Content::List(nodes) => Some((entry.key.as_str(), nodes.as_slice())),
        _ => None,
    });
    let mut found = Vec::new();
    for (list, nodes) in lists {
        found.extend(named(nodes, name).into_iter().map(|index| (list, index, &nodes[index])));
    }
    match found.as_slice() {
        [] => Ok(path),
        [(list, index, _)] => {
            let mut full = vec![Step::Key((*list).to_owned()), Step::Index(*index)];
            full.extend_from_slice(&path[1..]);
            Ok(full)
        }
        several => {
            let candidates = several.iter().map(|(list, index, node)| describe(list, *index, node));
            Err(ambiguous(name, &candidates.collect::<Vec<_>>()))
        }
    }
}

/// The elements whose `name` is `label`; if there are none, those whose `kind` is.
fn named(nodes: &[Node], label: &str) -> Vec<usize> {
    let under = |key: &str| -> Vec<usize> {
        (0..nodes.len()).filter(|index| nodes[*index].text(key) == Some(label)).collect()
    };
    let by_name = under("name");
    if by_name.is_empty() { under("kind") } else { by_name }
}

fn ambiguous(name: &str, candidates: &[String]) -> Fault {
    Fault::new("", format!("`{name}` names {} tables", candidates.len()))
        .hint(format!("say which by its index: {}", candidates.join(", ")))
}

/// `stage[1] (kind = "rl", name = "warm")`.
fn describe(list: &str, index: usize, node: &Node) -> String {
    let labels: Vec<String> = ["kind", "name"]
        .iter()
        .filter_map(|key| node.text(key).map(|label| format!("{key} = {label:?}")))
        .collect();
    match labels.as_slice() {
        [] => format!("{list}[{index}]"),
        labels => format!("{list}[{index}] ({})", labels.join(", ")),
    }
}

fn assign(root: &mut Node, path: &[Step], value: Node, number: usize) -> Result<(), Fault> {
    let mut node = root;
    for (depth, step) in path.iter().enumerate() {
        let walked = PathText(&path[..depth]).to_string();
        // Borrowed here and not in the match, so that a table can be changed below.
        let words = node.in_words();
        node = match (&mut node.content, step) {
            (Content::Table(entries), Step::Key(key)) => {
                let position = match entries.iter().position(|entry| entry.key == *key) {
                    Some(position) => position,
                    None => {
                        let table = Content::Table(Vec::new());
                        entries.push(Entry {
                            key: key.clone(),
                            key_origin: Origin::Override(number),
                            node: Node::new(table, Origin::Override(number)),
                        });
                        entries.len() - 1
                    }
                };
                let entry = &mut entries[position];
                if depth + 1 == path.len() {
                    entry.key_origin = Origin::Override(number);
                }
                &mut entry.node
            }
            (Content::List(nodes), step) => {
                let index = match step {
                    Step::Index(index) if *index < nodes.len() => *index,
                    Step::Index(index) => return Err(beyond(&walked, *index, nodes)),
                    Step::Key(key) => match named(nodes, key).as_slice() {
                        [index] => *index,
                        [] => return Err(which(&walked, key, nodes)),
                        several => {
                            let candidates: Vec<String> = several
                                .iter()
                                .map(|index| describe(&walked, *index, &nodes[*index]))
                                .collect();
                            return Err(ambiguous(key, &candidates));
                        }
                    },
                };
                &mut nodes[index]
            }
            (_, Step::Key(key)) => {
                return Err(Fault::new("", format!("`{walked}` has no keys, so no `{key}`"))
                    .found(words)
                    .expected("a table"));
            }
            (_, Step::Index(index)) => {
                return Err(Fault::new("", format!("`{walked}` has no element {index}"))
                    .found(words)
                    .expected("a list"));
            }
        };
    }
    *node = value;
    Ok(())
}

fn beyond(list: &str, index: usize, nodes: &[Node]) -> Fault {
    Fault::new("", format!("there is no `{list}[{index}]`")).hint(these(list, nodes))
}

fn which(list: &str, key: &str, nodes: &[Node]) -> Fault {
    Fault::new("", format!("`{list}` is a list in which nothing is called `{key}`"))
        .hint(these(list, nodes))
}

fn these(list: &str, nodes: &[Node]) -> String {
    let all: Vec<String> =
        nodes.iter().enumerate().map(|(index, node)| describe(list, index, node)).collect();
    match all.as_slice() {
        [] => format!("`{list}` is empty"),
        all => format!("there are {}", all.join(", ")),
    }
}
