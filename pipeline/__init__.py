"""Labels the emotions of people in large video corpora: the way of a clip, one room a step.

records      what flows: Clip, Box, Face, Example, Prediction, Outcome, and their Arrow schemas
corpus       a folder, tree, manifest or glob at any URL -> Clips with stable ids
archives     an archive -> its members, and their bytes
video        a clip -> sampled frames, checked            detection/  a frame -> faces
crops        a face -> its crop and its masked context    extract     these three, inside the fence
fence        a supervised child process: a crash costs one clip
confine      what that child gives up: network, programs, writing, memory without end
storage      objects that are whole or absent             ledger      plan, commit, resume, audit
preflight    output, input and decoders, tried before hours are spent
segments     long clips -> parts that are units of work
console      what a job tells while it works: lines for people, or JSON for machines
pool         units of clips through Ray actors            quarantine  what ended badly, and another try
telemetry    what a run tells Prometheus while it works
preprocess   clips -> shards of examples                  (composer on Ray Data)
models/      CAHFW-Net and its ablations                  dataset     shards -> tensors
checkpoint   weights and JSON, never a pickle             train       (composer on Ray Train)
metrics, paper, evaluate, examine, compare, report        what people look at; the paper's numbers
tracks       faces of a clip -> persons over time         night       what is new to a model; copies; drift
score        clips -> labels                              (composer on Ray Data)
synthetic    the made corpus of the demo and the tests
benchmark/   what all of it costs on this machine: one module a study
"""
