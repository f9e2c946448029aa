"""A page in the browser of this machine: learn, compose and keep house without a command line.

`desk` is the one queue of tasks, whatever tabs are open; `studio` says what a form asks for and does it with a
`Workshop`; `parts` are the pieces of the page that show things, everything escaped; `page` puts them together with
Gradio (the extra `customttt[ui]`).
"""
