// Before anything is drawn: a page that is dark by choice must not flash.
try {
  const theme = JSON.parse(localStorage.getItem("doge_export.settings") ?? "{}").theme;
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // No storage, or not ours: as the system has it.
}
