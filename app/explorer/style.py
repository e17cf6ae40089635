"""How the panel looks. Colours are JupyterLab's own variables, so it follows the theme; elsewhere it falls back to a light one."""

import ipywidgets as widgets

CSS = """
.imagine { max-width: 46rem; padding: 2px 4px 12px; gap: 10px; overflow: visible;
  --line: var(--jp-border-color2, #ddd); --soft: var(--jp-layout-color2, #f3f3f3); --ink: var(--jp-ui-font-color1, #222);
  --faint: var(--jp-ui-font-color2, #666); --brand: var(--jp-brand-color1, #1976d2); --bad: var(--jp-error-color1, #c62828);
  color: var(--ink); font-family: var(--jp-ui-font-family, sans-serif); }
.imagine .widget-vbox, .imagine .widget-hbox, .imagine .widget-box { overflow: visible; }
.imagine .widget-html, .imagine .widget-html-content { height: auto; line-height: 1.4; }
.imagine .widget-html-content { color: var(--ink); }
.imagine .imagine-about .widget-html-content { color: var(--faint); font-size: 12px; }
.imagine-form, .imagine-part { gap: 8px; }
.imagine-field { flex: 1 1 auto; min-width: 0; }
.imagine-field .widget-text { width: auto; height: auto; align-items: center; margin: 0; }
.imagine .widget-dropdown .widget-label, .imagine-field .widget-text .widget-label {
  color: var(--faint); min-width: 4.2rem; text-align: left; }
.imagine-field input { height: 30px !important; border-radius: 4px; color: var(--ink); background: var(--jp-layout-color0, #fff); }
.imagine-wrong input { border-color: var(--bad) !important; }
.imagine-problem { color: var(--bad); font-size: 12px; padding-left: 4.5rem; }
.imagine-row { flex-wrap: wrap; gap: 6px 14px; align-items: flex-start; }
.imagine-row .imagine-row { flex-wrap: nowrap; gap: 4px; flex: 1 1 17rem; }
.imagine-row > .imagine-field { flex: 1 1 9rem; }
.imagine-numbers { display: grid !important; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: 6px 14px; }
.imagine .jupyter-button { height: 30px; line-height: 30px; margin: 0; border-radius: 4px; box-shadow: none; }
.imagine .jupyter-button:not(.mod-primary) { background: var(--soft); color: var(--ink); }
.imagine .jupyter-button.mod-primary { background: var(--brand); color: #fff; font-weight: 600; }
.imagine .jupyter-button:disabled { opacity: .45; }
.imagine button:focus-visible, .imagine input:focus-visible { outline: 2px solid var(--brand); outline-offset: 1px; }
.imagine-row > .imagine-row > .jupyter-button { width: 32px; flex: none; padding: 0; }
.imagine-examples { flex-wrap: wrap; gap: 6px; padding-left: 4.5rem; }
.imagine-examples .jupyter-button { width: auto; height: 24px; line-height: 24px; font-size: 12px; border-radius: 12px; padding: 0 10px;
  max-width: 100%; color: var(--faint) !important; }
.imagine-actions { gap: 8px; align-items: center; flex-wrap: wrap; }
.imagine-actions .jupyter-button { width: auto; min-width: 6.5rem; padding: 0 14px; }
.imagine .imagine-status .widget-html-content { color: var(--faint); font-variant-numeric: tabular-nums; }
.imagine .widget-hprogress { width: 100%; height: 8px; margin: 0; }
.imagine .widget-hprogress .progress { background: var(--soft); border-radius: 4px; height: 6px; }
.imagine .widget-hprogress .progress-bar { border-radius: 4px; transition: width .15s linear; }
.imagine-message:not(:has([role])) { display: none; }
.imagine-message [role=alert] { border-left: 3px solid var(--bad); background: var(--soft); padding: 8px 12px; border-radius: 0 4px 4px 0; }
.imagine-viewer { gap: 8px 18px; flex-wrap: wrap; align-items: flex-start; }
.imagine-viewer > .widget-image { flex: 1 1 16rem; min-width: 12rem; max-width: 26rem; height: auto; aspect-ratio: auto; border-radius: 6px;
  background: var(--soft); object-fit: contain; }
.imagine-facts { flex: 1 1 14rem; gap: 8px; min-width: 0; }
.imagine-facts table { border-collapse: collapse; font-size: 12px; line-height: 1.5; width: 100%; }
.imagine-facts th { text-align: left; font-weight: 400; color: var(--faint); padding: 0 12px 2px 0; white-space: nowrap;
  vertical-align: top; }
.imagine-facts td { text-align: left; overflow-wrap: anywhere; padding: 0 0 2px; }
.imagine-facts .imagine-note { color: var(--bad); }
.imagine a.imagine-download { color: var(--jp-content-link-color, #1976d2); }
.imagine-gallery { display: grid !important; grid-template-columns: repeat(auto-fill, minmax(74px, 1fr)); gap: 10px; padding: 4px; }
.imagine-tile { position: relative; aspect-ratio: 1; border-radius: 6px; background: var(--soft); overflow: hidden !important; }
.imagine-tile .widget-image { width: 100%; height: 100%; object-fit: cover; margin: 0; }
.imagine .imagine-tile .jupyter-button { position: absolute; inset: 0; width: 100%; height: 100%; background: transparent !important;
  color: transparent !important; font-size: 1px; border-radius: 6px; border: 2px solid transparent; }
.imagine-tile.imagine-chosen { box-shadow: 0 0 0 2px var(--jp-layout-color0, #fff), 0 0 0 4px var(--brand); }
.imagine .imagine-tile .jupyter-button:hover { border-color: var(--faint); }
.imagine-sheet .widget-image { max-width: 100%; height: auto; border-radius: 6px; }
.imagine-fold .jupyter-widget-Collapse, .imagine-fold .widget-collapse { border: 0; margin: 0; }
.imagine-fold .jupyter-widget-Collapse-header, .imagine-fold .widget-collapse > .widget-header { background: transparent; border: 0;
  border-top: 1px solid var(--line); padding: 6px 0; color: var(--ink); }
.imagine-fold .jupyter-widget-Collapse-contents { background: transparent; border: 0; padding: 6px 0 4px; color: var(--ink); }
.imagine-fold .widget-vbox { gap: 8px; }
.imagine .widget-dropdown { width: auto; margin: 0; align-items: center; height: auto; }
.imagine .widget-dropdown select { height: 30px; border-radius: 4px; }
"""


def stylesheet() -> widgets.HTML:
    return widgets.HTML(f"<style>{CSS}</style>")
