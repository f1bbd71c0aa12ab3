"""MLflow's gauges of a machine, without the thread that it would read them on."""

from __future__ import annotations

import logging

from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor
from mlflow.system_metrics.metrics.rocm_monitor import ROCMMonitor

from hasten.platform.observer import Gauge

log = logging.getLogger(__name__)


def gauges() -> list[Gauge]:
    """Those of the processor, the memory, the disk and the network; of GPUs where their library is there."""
    found: list[Gauge] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    for kind in (GPUMonitor, ROCMMonitor):
        try:
            found.append(kind())
            break
        except Exception as missing:  # each library has errors of its own
            log.debug("tracking: %s: %s", kind.__name__, missing)
    return found
