"""What the templates are rendered with: conversations of all the kinds that a chat server sees."""

WEATHER = {"type": "function", "function": {
    "name": "get_weather", "description": "Tells the weather of a <city> & its \"surroundings\".",
    "parameters": {"type": "object", "required": ["city"], "properties": {
        "city": {"type": "string", "description": "Name, e.g. Zürich"},
        "unit": {"type": "string", "enum": ["celsius", "fahrenheit"], "default": "celsius"},
        "days": {"type": "integer"}}}}}
SUM = {"type": "function", "function": {
    "name": "add", "description": "Adds numbers.",
    "parameters": {"type": "object", "required": ["numbers"], "properties": {
        "numbers": {"type": "array", "items": {"type": "number"}, "description": "What to add."},
        "exact": {"type": "boolean", "default": False},
        "options": {"type": "object", "properties": {"digits": {"type": ["integer", "null"]}}}}},
    "return": {"type": "number", "description": "The sum."}}}
NOTHING = {"type": "function", "function": {
    "name": "ping", "description": "Takes nothing.", "parameters": {"type": "object", "properties": {}}}}


def say(role, content, **more):
    return {"role": role, "content": content, **more}


def call(name, arguments, id="call00001"):
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


S, U, A = (lambda t: say("system", t)), (lambda t: say("user", t)), (lambda t: say("assistant", t))
ASKED = [U("Weather in Zürich?"),
         say("assistant", "", tool_calls=[call("get_weather", {"city": "Zürich", "days": 2})]),
         say("tool", "{\"sky\": \"grey\"}", name="get_weather", tool_call_id="call00001")]
TWO_CALLS = [S("Be exact."), U("Both, please."),
             say("assistant", "I call two.", tool_calls=[
                 call("add", {"numbers": [1, 2.5, -3e20], "exact": True}, "abcdefgh1"),
                 call("get_weather", {"city": "O'Hare \"x\" \\ \n", "unit": None}, "abcdefgh2")]),
             say("tool", "0.5", name="add", tool_call_id="abcdefgh1"),
             say("tool", "rain", name="get_weather", tool_call_id="abcdefgh2"),
             A("Half, and rain."), U("Thanks")]

# name → variables beside the defaults
CONVERSATIONS = {
    "one turn": {"messages": [U("Hello")]},
    "system": {"messages": [S("You are terse."), U("Hello")]},
    "several turns": {"messages": [U("One"), A("Two"), U("Three"), A("Four"), U("Five")]},
    "system and turns": {"messages": [S("Count."), U("One"), A("Two"), U("Three")]},
    "unicode": {"messages": [S("Grüße ☃"), U("日本語 🙂 ẞ ﬁ"), A("Ζεύς\u00a0ΣΑΣ"), U("עברית\u2028x")]},
    "empty": {"messages": [S(""), U(""), A(""), U("")]},
    "white space": {"messages": [S("  \n lead"), U("\t tail \n\n"), A(" \r\n both \n"), U("\u00a0x\u3000")]},
    "markup": {"messages": [U("<b>&amp;</b> {{ x }} {% if %} {# c #} 'q' \"d\" \\n"), A("```\n{}\n```"), U("$")]},
    "ends with assistant": {"messages": [U("Say"), A("I say")], "add_generation_prompt": False},
    "assistant last, prompted": {"messages": [U("Say"), A("I say")]},
    "not prompted": {"messages": [S("S"), U("Say")], "add_generation_prompt": False},
    "two of a role": {"messages": [U("a"), U("b"), A("c"), A("d"), U("e")]},
    "two systems": {"messages": [S("a"), U("b"), S("c"), U("d")]},
    "only system": {"messages": [S("alone")]},
    "assistant first": {"messages": [A("Hi"), U("Hello")]},
    "no messages": {"messages": []},
    "unknown role": {"messages": [U("a"), say("wizard", "b"), U("c")]},
    "developer": {"messages": [say("developer", "Dev."), U("a")]},
    "content is null": {"messages": [U("a"), say("assistant", None), U("b")]},
    "content is missing": {"messages": [U("a"), {"role": "assistant"}, U("b")]},
    "content is a number": {"messages": [U(3)]},
    "content in parts": {"messages": [
        say("user", [{"type": "text", "text": "Part one. "}, {"type": "text", "text": "Two."}]), A("ok"), U("b")]},
    "image": {"messages": [say("user", [{"type": "image"}, {"type": "text", "text": "What is it?"}])]},
    "thoughts": {"messages": [U("a"), A("<think>\nhm\n</think>\n\nb"), U("c"), A("<think></think>d"), U("e")]},
    "reasoning": {"messages": [U("a"), say("assistant", "b", reasoning_content="hm"), U("c"),
                               say("assistant", "d", reasoning_content=" x \n", thinking="t"), U("e")]},
    "thinking off": {"messages": [S("s"), U("a")], "enable_thinking": False, "thinking": False},
    "thinking on": {"messages": [S("s"), U("a"), A("b"), U("c")], "enable_thinking": True, "thinking": True},
    "reasoning effort": {"messages": [U("a")], "reasoning_effort": "high", "reasoning_budget": 512},
    "tools": {"messages": [U("Weather?")], "tools": [WEATHER]},
    "tools and system": {"messages": [S("Use tools."), U("Sum?")], "tools": [WEATHER, SUM, NOTHING]},
    "no tools": {"messages": [U("a")], "tools": []},
    "tool answer": {"messages": ASKED, "tools": [WEATHER]},
    "tool answer, turns": {"messages": ASKED + [A("Grey."), U("And tomorrow?")], "tools": [WEATHER, SUM]},
    "two calls": {"messages": TWO_CALLS, "tools": [SUM, WEATHER]},
    "calls without tools": {"messages": TWO_CALLS},
    "call as text": {"messages": [U("x"), say("assistant", None, tool_calls=[call("ping", "{\"a\": 1}")]),
                                  say("tool", "pong", tool_call_id="call00001")], "tools": [NOTHING]},
    "calls not prompted": {"messages": TWO_CALLS[:3], "tools": [SUM, WEATHER], "add_generation_prompt": False},
    "documents": {"messages": [U("a?")], "documents": [{"title": "T", "text": "Body\nof it", "doc_id": 1},
                                                       {"title": "U", "text": ""}]},
    "own words": {"messages": [U("a")], "date_string": "01 Feb 2031", "model_identity": "You are a test.",
                  "custom_tools": None, "builtin_tools": ["browser", "python"], "tools_in_user_message": False},
    "long": {"messages": [S("s")] + [m for i in range(40) for m in (U("q%d" % i), A("a%d" % i))] + [U("last")]},
}
DEFAULTS = {"tools": None, "documents": None, "add_generation_prompt": True, "bos_token": "<s>",
            "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
