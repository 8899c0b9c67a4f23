"""The gateway: OpenAI's chat API in front of the engines, with answers looked up in indexes and their sources cited.

A request goes through `chat` (parse, retrieve, build the prompt), `engines` (who answers) and `exchange` (the wire to the
engine), and comes back through `relay` (bytes as they are) or `cited_stream` (marks made right). `live` keeps the one `Revision`
that serves. Nothing here blocks the event loop: models encode, the vector store searches and traces are sent in threads.
"""
