"""What a study is about: labelled rows, the labels, prompts nothing is fitted to, and a judge."""

from ksteer_vllm.tasks.dataset import TaskDataset
from ksteer_vllm.tasks.opening import open_task
from ksteer_vllm.tasks.partition import Partition
from ksteer_vllm.tasks.replies import generate_missing_replies

__all__ = ["Partition", "TaskDataset", "generate_missing_replies", "open_task"]
