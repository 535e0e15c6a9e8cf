# A periodic task for the example: beat sends "tick" every second, a worker notes it.
import os
import time

from celery import Celery

app = Celery("tasks", broker=os.environ.get("BROKER", "redis://127.0.0.1:6379/0"))
app.conf.timezone = "UTC"
app.conf.beat_schedule = {"tick": {"task": "tasks.tick", "schedule": 1.0, "kwargs": {}}}
app.conf.beat_max_loop_interval = 1  # beat wakes at least this often


@app.task(ignore_result=True)
def tick():
    with open(os.environ.get("TICKS", "ticks"), "a") as f:
        f.write("%.3f\n" % time.time())
