"""What tests share: fake devices, planted faults, jobs, servers, reports."""
