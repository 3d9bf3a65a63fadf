use super::*;

const CHATML: &str = "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";
/// The first generation of Llama 3.
const LLAMA_3: &str = "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}";
/// The constructs that newer templates take from Python: methods, slices, namespaces, loop controls, dates, JSON.
const PYTHON: &str = r#"
{%- if not date_string is defined %}
    {%- set date_string = strftime_now("%d %b %Y") %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'].strip() %}
    {%- set messages = messages[1:] %}
{%- endif %}
{{- "today " + date_string + "\n" }}
{%- if tools is not none %}
    {{- tools | tojson }}
{%- endif %}
{%- set state = namespace(turns=0) %}
{%- for message in messages %}
    {%- if message.role not in ["user", "assistant"] %}
        {{- raise_exception("no role " + message.role) }}
    {%- endif %}
    {%- if message.content.startswith("skip") %}{%- continue %}{%- endif %}
    {%- set state.turns = state.turns + 1 %}
    {%- for key, value in message.items() %}
        {{- key + "=" + value.split("</think>")[-1].lstrip("\n") + ";" }}
    {%- endfor %}
    {% generation %}
{{ "\n" }}
    {%- endgeneration %}
{%- endfor %}
{{- state.turns }}"#;

fn chat(json: Json) -> Map<String, Json> {
    let Json::Object(map) = json else { panic!("an object") };
    map
}

fn hello() -> Map<String, Json> {
    chat(json!({"messages": [
        {"role": "system", "content": " Be <brief>. "},
        {"role": "user", "content": " Hi & 'hello' "},
        {"role": "assistant", "content": "<think>a</think>\nYes"},
    ]}))
}

#[test]
fn chatml_is_rendered_without_escapes() {
    let text = ChatTemplate::new(CHATML, "<s>", "</s>").render(&hello()).unwrap();
    assert_eq!(
        text,
        "<|im_start|>system\n Be <brief>. <|im_end|>\n<|im_start|>user\n Hi & 'hello' <|im_end|>\n<|im_start|>assistant\n<think>a</think>\nYes<|im_end|>\n"
    );
}

#[test]
fn llama_3_begins_with_its_token() {
    let text = ChatTemplate::new(LLAMA_3, "<|begin_of_text|>", "").render(&hello()).unwrap();
    assert_eq!(
        text,
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe <brief>.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi & 'hello'<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n<think>a</think>\nYes<|eot_id|>"
    );
}

#[test]
fn what_templates_take_from_python_works() {
    let template = ChatTemplate::new(PYTHON, "", "");
    let text = template.render(&hello()).unwrap();
    assert_eq!(text, "today 26 Jul 2024\nrole=user;content= Hi & 'hello' ;\nrole=assistant;content=Yes;\n2");
    let mut with_tools = hello();
    with_tools.insert("tools".into(), json!([{"name": "f<1>", "arguments": [1, 2]}]));
    let text = template.render(&with_tools).unwrap();
    assert!(text.contains(r#"[{"name": "f<1>", "arguments": [1, 2]}]"#), "{text}");
}

#[test]
fn conversations_of_other_spelling_are_the_same() {
    let other = chat(json!({"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}));
    let same = chat(json!({"messages": [
        {"role": "user", "content": [{"type": "text", "text": "Q"}]}, {"role": "assistant", "content": "A"},
    ]}));
    let template = ChatTemplate::new(CHATML, "", "");
    assert_eq!(template.render(&other).unwrap(), template.render(&same).unwrap());
}

#[test]
fn what_a_template_refuses_is_said() {
    let tool = chat(json!({"messages": [{"role": "tool", "content": "x"}]}));
    let said = ChatTemplate::new(PYTHON, "", "").render(&tool).unwrap_err();
    assert_eq!(said, "chat template, line 16: no role tool");
    let broken = ChatTemplate::new("{% for x in %}", "", "").render(&hello()).unwrap_err();
    assert!(broken.starts_with("chat template, line 1: "), "{broken}");
    for (messages, what) in [
        (json!([]), "the conversation is empty"),
        (json!(["x"]), "a message is no object"),
        (json!([{"content": "x"}]), "a message has no role"),
        (json!([{"role": "user"}]), "a message has no text"),
        (json!([{"role": "user", "content": [{"type": "image"}]}]), "a message has parts without text"),
    ] {
        let said = ChatTemplate::new(CHATML, "", "").render(&chat(json!({"messages": messages}))).unwrap_err();
        assert_eq!(said, what);
    }
}

#[test]
fn a_template_without_end_is_stopped() {
    let endless = "{% for a in range(100000) %}{% for b in range(100000) %}{{ a }}{% endfor %}{% endfor %}";
    let said = ChatTemplate::new(endless, "", "").render(&hello()).unwrap_err();
    assert!(said.contains("fuel"), "{said}");
}
